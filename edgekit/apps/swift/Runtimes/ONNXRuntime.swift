import Foundation
import OnnxRuntimeBindings

/// How ONNX Runtime runs the model.
public struct RuntimeOptions: Sendable {
    public enum Provider: Sendable {
        /// ONNX Runtime's own kernels on this many threads.
        case cpu(threads: Int)
        /// Core ML for the parts that it takes (GPU and Neural Engine compute in float16), the CPU for the rest.
        case coreML
    }

    public var provider: Provider

    public init(provider: Provider = .cpu(threads: 2)) {
        self.provider = provider
    }
}

/// An ONNX Runtime session; `environment` has to outlive it.
final class ONNXRuntime: ModelRuntime {
    private let environment: ORTEnv
    private let session: ORTSession
    private let spec: ModelSpec

    init(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) throws {
        let session = try ORTSessionOptions()
        switch options.provider {
        case .cpu(let threads):
            try session.setIntraOpNumThreads(Int32(max(threads, 1)))
        case .coreML:
            try session.appendCoreMLExecutionProvider(with: ORTCoreMLExecutionProviderOptions())
        }
        environment = try ORTEnv(loggingLevel: .warning)
        self.session = try ORTSession(
            env: environment, modelPath: try spec.url(in: bundle).path, sessionOptions: session)
        self.spec = spec
    }

    func scores(of input: ModelInput) throws -> [Float] {
        let (bytes, element): (NSMutableData, ORTTensorElementDataType) =
            switch input.values {
            case .float32(let values): (Self.bytes(values), .float)
            case .uint8(let values): (Self.bytes(values), .uInt8)
            case .int8(let values): (Self.bytes(values), .int8)
            }
        let value = try ORTValue(
            tensorData: bytes, elementType: element, shape: input.shape.map { NSNumber(value: $0) })
        let results = try session.run(
            withInputs: [spec.input.name: value], outputNames: [spec.output.name], runOptions: nil)
        guard let result = results[spec.output.name] else {
            throw ClassificationError.unexpectedOutput("no \(spec.output.name)")
        }
        let output = Data(referencing: try result.tensorData())
        switch spec.output.element {
        case .float32: return Self.floats(output)
        case .uint8: return spec.output.dequantized(output)
        case .int8: return spec.output.dequantized(output.map { Int8(bitPattern: $0) })
        }
    }

    private static func bytes<Value>(_ values: [Value]) -> NSMutableData {
        values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
    }

    private static func floats(_ data: Data) -> [Float] {
        data.withUnsafeBytes { raw in
            (0..<raw.count / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
        }
    }
}

func loadRuntime(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws -> sending any ModelRuntime {
    try ONNXRuntime(spec: spec, options: options, bundle: bundle)
}
