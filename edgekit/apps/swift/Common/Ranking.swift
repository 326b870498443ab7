import Foundation

/// One class and how sure the model is of it.
public struct Classification: Sendable, Equatable, Identifiable {
    /// The class by its number in the model's output.
    public let index: Int
    public let label: String
    /// The softmax of the scores, from 0 to 1.
    public let probability: Float

    public var id: Int { index }
}

/// From a model's scores to classes.
enum Ranking {
    /// Probabilities of `scores`, which sum to 1.
    static func softmax(_ scores: [Float]) -> [Float] {
        let highest = scores.max() ?? 0
        let powers = scores.map { exp(Double($0 - highest)) }
        let sum = powers.reduce(0, +)
        return powers.map { Float($0 / sum) }
    }

    /// The `count` likeliest classes, likeliest first, of equals the one with the lower number first.
    ///
    /// Throws `ClassificationError.unexpectedOutput` for scores that are not one finite number a label.
    static func top(_ count: Int, of scores: [Float], labels: [String]) throws -> [Classification] {
        guard scores.count == labels.count else {
            throw ClassificationError.unexpectedOutput("\(scores.count) scores for \(labels.count) labels")
        }
        guard scores.allSatisfy(\.isFinite) else {
            throw ClassificationError.unexpectedOutput("scores that are not finite")
        }
        let probabilities = softmax(scores)
        let order = scores.indices.sorted { scores[$0] == scores[$1] ? $0 < $1 : scores[$0] > scores[$1] }
        return order.prefix(max(count, 0)).map {
            Classification(index: $0, label: labels[$0], probability: probabilities[$0])
        }
    }
}

/// A label's file: one a line, where only a line feed ends a line.
enum Labels {
    static func parse(_ text: String) -> [String] {
        // By scalars: "\r\n" is one Character, which would hide the line feed in it.
        var lines = text.unicodeScalars.split(separator: "\n", omittingEmptySubsequences: false).map { String($0) }
        if lines.last == "" { lines.removeLast() }
        return lines
    }
}
