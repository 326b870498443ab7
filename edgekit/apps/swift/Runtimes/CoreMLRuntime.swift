import CoreML
import Foundation

/// How Core ML runs the model.
public struct RuntimeOptions: Sendable {
    /// Where Core ML may run it. The GPU and the Neural Engine compute in float16.
    public var computeUnits: MLComputeUnits

    public init(computeUnits: MLComputeUnits = .all) {
        self.computeUnits = computeUnits
    }
}

/// Core ML; the package's model is compiled by Xcode, or here on its first use.
final class CoreMLRuntime: ModelRuntime {
    private let model: MLModel
    private let spec: ModelSpec

    init(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = options.computeUnits
        model = try await Self.load(spec, configuration, bundle)
        self.spec = spec
    }

    func scores(of input: ModelInput) throws -> [Float] {
        guard case .float32(let values) = input.values else {
            throw ClassificationError.modelNotLoaded("Core ML takes no integer image")
        }
        let array = MLMultiArray(MLShapedArray<Float>(scalars: values, shape: input.shape))
        let features = try MLDictionaryFeatureProvider(
            dictionary: [spec.input.name: MLFeatureValue(multiArray: array)])
        let result = try model.prediction(from: features)
        guard let scores = result.featureValue(for: spec.output.name)?.multiArrayValue else {
            throw ClassificationError.unexpectedOutput("no \(spec.output.name)")
        }
        if scores.dataType == .float32 { return MLShapedArray<Float>(scores).scalars }
        return (0..<scores.count).map { scores[$0].floatValue }
    }

    /// `swift build` and old versions of Xcode leave the model uncompiled.
    private static func load(
        _ spec: ModelSpec, _ configuration: MLModelConfiguration, _ bundle: Bundle
    ) async throws -> MLModel {
        if let compiled = bundle.url(forResource: spec.resource, withExtension: "mlmodelc") {
            return try await MLModel.load(contentsOf: compiled, configuration: configuration)
        }
        let package = try spec.url(in: bundle)
        let cached = try CompiledModelCache.url(for: spec)
        if FileManager.default.fileExists(atPath: cached.path),
            let model = try? await MLModel.load(contentsOf: cached, configuration: configuration)
        {
            return model
        }
        // A model that does not load, as after an update of iOS, is compiled again.
        try CompiledModelCache.store(try await MLModel.compileModel(at: package), as: cached)
        return try await MLModel.load(contentsOf: cached, configuration: configuration)
    }
}

func loadRuntime(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws -> sending any ModelRuntime {
    try await CoreMLRuntime(spec: spec, options: options, bundle: bundle)
}
