import Foundation

/// How near a model's scores are to those it should give.
enum Signal {
    /// 10 log10(sum r² / sum (r - a)²): 200 where equal, -200 where either is not finite or lengths differ.
    static func sqnrDB(reference: [Float], actual: [Float]) -> Double {
        guard reference.count == actual.count, (reference + actual).allSatisfy(\.isFinite) else { return -200 }
        var signal = 0.0, noise = 0.0
        for (r, a) in zip(reference, actual) {
            signal += Double(r) * Double(r)
            noise += (Double(r) - Double(a)) * (Double(r) - Double(a))
        }
        if noise == 0 { return 200 }
        return signal == 0 ? -200 : min(max(10 * log10(signal / noise), -200), 200)
    }

    /// Whether `actual` puts a class first that `reference` has first too, or as good as first.
    ///
    /// As good is a score nearer to the best than twice the noise that an SQNR of `floorDB` leaves: such scores can
    /// change places by rounding alone.
    static func agreesOnTop(reference: [Float], actual: [Float], floorDB: Double) -> Bool {
        guard reference.count == actual.count, let best = reference.max(),
            let chosen = actual.indices.max(by: { actual[$0] < actual[$1] })
        else { return false }
        let power = reference.reduce(0.0) { $0 + Double($1) * Double($1) } / Double(reference.count)
        return Double(best - reference[chosen]) <= 2 * power.squareRoot() * pow(10, -floorDB / 20)
    }
}
