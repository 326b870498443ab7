import ExecuTorch
import Foundation

/// How ExecuTorch runs the model: which backend runs what was decided when it was exported.
public struct RuntimeOptions: Sendable {
    public init() {}
}

/// ExecuTorch's module, which loads the program and its backends once.
final class ExecuTorchRuntime: ModelRuntime {
    private let module: Module
    private let spec: ModelSpec

    init(spec: ModelSpec, bundle: Bundle) throws {
        module = Module(filePath: try spec.url(in: bundle).path)
        try module.load("forward")
        self.spec = spec
    }

    func scores(of input: ModelInput) throws -> [Float] {
        let outputs =
            switch input.values {
            case .float32(let values): try module.forward(Tensor<Float>(values, shape: input.shape))
            case .uint8(let values): try module.forward(Tensor<UInt8>(values, shape: input.shape))
            case .int8(let values): try module.forward(Tensor<Int8>(values, shape: input.shape))
            }
        switch spec.output.element {
        case .float32: return try Tensor<Float>(outputs).scalars()
        case .uint8: return spec.output.dequantized(try Tensor<UInt8>(outputs).scalars())
        case .int8: return spec.output.dequantized(try Tensor<Int8>(outputs).scalars())
        }
    }
}

func loadRuntime(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws -> sending any ModelRuntime {
    try ExecuTorchRuntime(spec: spec, bundle: bundle)
}
