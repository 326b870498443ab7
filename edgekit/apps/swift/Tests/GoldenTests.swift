import XCTest

@testable import EdgekitModule

/// Whether this device computes what the model computed when it was exported.
final class GoldenTests: XCTestCase {
    /// On the most exact unit, with the export's own tolerance.
    func testScoresAreThoseOfTheExport() async throws {
        try await check(Golden.exactOptions, minSQNR: Golden.minSQNR)
    }

    /// With the options that the app gets when it gives none; other units may compute in float16.
    func testScoresOfTheDefaultOptionsAreNear() async throws {
        try await check(RuntimeOptions(), minSQNR: Golden.minSQNROfDefaultOptions)
    }

    func testThereIsALabelForEachScore() async throws {
        let engine = try await Golden.engine(RuntimeOptions())
        XCTAssertEqual(engine.labels.count, engine.spec.output.count)
    }

    private func check(_ options: RuntimeOptions, minSQNR: Double) async throws {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "golden", withExtension: "safetensors"))
        let golden = try Safetensors(try Data(contentsOf: url)).tensors
        let engine = try await Golden.engine(options)
        var references: [[Float]] = []
        var all: [[Float]] = []
        while let input = golden["input.\(all.count)"], let expected = golden["output.\(all.count)"] {
            references.append(expected.floats)
            all.append(try await engine.scores(try ModelInput(golden: input)))
        }
        XCTAssertGreaterThan(all.count, 0, "golden.safetensors holds no input.0 with its output.0")
        let rows = Golden.isOfIntegers ? [(references.flatMap { $0 }, all.flatMap { $0 })] : Array(zip(references, all))
        for (reference, scores) in rows {
            XCTAssertGreaterThanOrEqual(Signal.sqnrDB(reference: reference, actual: scores), minSQNR, "SQNR in dB")
        }
        let mistaken = zip(references, all).filter { reference, scores in
            !Signal.agreesOnTop(reference: reference, actual: scores, floorDB: minSQNR)
        }
        let allowed = Golden.isOfIntegers ? max(1, all.count / 100) : 0
        XCTAssertLessThanOrEqual(mistaken.count, allowed, "samples with another likeliest class")
    }
}

extension ModelInput {
    /// A golden input, which is a model's input already.
    init(golden: Safetensors.Tensor) throws {
        switch golden.dtype {
        case "F32": self.init(values: .float32(golden.floats), shape: golden.shape)
        case "U8": self.init(values: .uint8([UInt8](golden.bytes)), shape: golden.shape)
        case "I8": self.init(values: .int8(golden.bytes.map { Int8(bitPattern: $0) }), shape: golden.shape)
        default: throw Safetensors.Damaged(description: "an input of type \(golden.dtype)")
        }
    }
}
