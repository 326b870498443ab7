import Foundation

/// Prepares photos and runs the model on them, one at a time: runtimes are not safe to call from two threads at once.
public actor ClassificationEngine {
    nonisolated let spec: ModelSpec
    nonisolated let labels: [String]
    private let runtime: any ModelRuntime

    /// Loads the model and the labels from `bundle`, which can take seconds: keep one engine for the app's life.
    ///
    /// Throws `ClassificationError` or what the runtime throws.
    init(spec: ModelSpec, options: RuntimeOptions, bundle: Bundle) async throws {
        guard let url = bundle.url(forResource: "labels", withExtension: "txt") else {
            throw ClassificationError.missingResource("labels.txt")
        }
        self.spec = spec
        labels = Labels.parse(String(decoding: try Data(contentsOf: url), as: UTF8.self))
        runtime = try await loadRuntime(spec: spec, options: options, bundle: bundle)
    }

    /// The model's scores of a prepared photo, one a class.
    ///
    /// Throws `ClassificationError.unexpectedOutput` or what the runtime throws.
    func scores(_ input: ModelInput) throws -> [Float] {
        let scores = try runtime.scores(of: input)
        guard scores.count == spec.output.count else {
            throw ClassificationError.unexpectedOutput("\(scores.count) scores in place of \(spec.output.count)")
        }
        return scores
    }

    func classify(_ input: ModelInput, top: Int) throws -> [Classification] {
        try Ranking.top(top, of: scores(input), labels: labels)
    }
}

/// What runs a model: one small type a runtime. Not safe to call from two threads at once.
protocol ModelRuntime {
    /// The model's scores of one photo, as floats whatever the model computes in.
    func scores(of input: ModelInput) throws -> [Float]
}

extension ModelSpec {
    /// The model's file in `bundle`; throws `ClassificationError.missingResource`.
    func url(in bundle: Bundle) throws -> URL {
        guard let url = bundle.url(forResource: resource, withExtension: resourceType) else {
            throw ClassificationError.missingResource("\(resource).\(resourceType)")
        }
        return url
    }
}

extension ModelSpec.Tensor {
    /// The values of integers as the model means them.
    func dequantized(_ levels: some Sequence<some BinaryInteger>) -> [Float] {
        levels.map { Float((Double(Int($0)) - Double(zeroPoint)) * scale) }
    }
}
