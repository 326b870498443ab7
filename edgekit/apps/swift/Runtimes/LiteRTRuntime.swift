import Foundation
import LiteRT

/// How LiteRT runs the model.
public struct RuntimeOptions: Sendable {
    public enum Accelerator: Sendable {
        /// XNNPACK on this many threads.
        case cpu(threads: Int)
        /// Metal, which computes in float16; the CPU runs what it cannot.
        case gpu
    }

    public var accelerator: Accelerator

    public init(accelerator: Accelerator = .cpu(threads: 2)) {
        self.accelerator = accelerator
    }
}

/// LiteRT's compiled model with the memory of its one input and output.
final class LiteRTRuntime: ModelRuntime {
    private let model: CompiledModel
    private let inputs: [TensorBuffer]
    private let outputs: [TensorBuffer]
    private let spec: ModelSpec

    init(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) throws {
        let compilation = try Options()
        switch options.accelerator {
        case .cpu(let threads):
            try compilation.setHardwareAccelerators([.cpu])
            let cpu = try CpuOptions()
            try cpu.setKernelMode(.delegate)
            try cpu.setNumThreads(max(threads, 1))
            try compilation.addConcreteOptions(cpu)
        case .gpu:
            try compilation.setHardwareAccelerators([.gpu, .cpu])
        }
        model = try CompiledModel(
            filePath: try spec.url(in: bundle).path, environment: try Environment(), options: compilation)
        inputs = try model.createInputBuffers()
        outputs = try model.createOutputBuffers()
        guard inputs.count == 1, outputs.count == 1 else {
            throw ClassificationError.modelNotLoaded("\(inputs.count) inputs and \(outputs.count) outputs")
        }
        self.spec = spec
    }

    func scores(of input: ModelInput) throws -> [Float] {
        switch input.values {
        case .float32(let values): try inputs[0].write(values)
        case .uint8(let values): try inputs[0].write(values)
        case .int8(let values): try inputs[0].write(values)
        }
        try model.run(inputs: inputs, outputs: outputs)
        switch spec.output.element {
        case .float32: return try outputs[0].read()
        case .uint8: return spec.output.dequantized(try outputs[0].read() as [UInt8])
        case .int8: return spec.output.dequantized(try outputs[0].read() as [Int8])
        }
    }
}

func loadRuntime(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws -> sending any ModelRuntime {
    try LiteRTRuntime(spec: spec, options: options, bundle: bundle)
}
