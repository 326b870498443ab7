import Foundation

/// How pixels between pixels are made, as Pillow makes them.
enum ResamplingFilter: Sendable {
    case nearest, bilinear, bicubic, lanczos

    /// How far a pixel reaches, in pixels.
    var support: Double {
        switch self {
        case .nearest: 0
        case .bilinear: 1
        case .bicubic: 2
        case .lanczos: 3
        }
    }

    /// The weight of a pixel at a distance of `x` pixels.
    func weight(_ x: Double) -> Double {
        let x = abs(x)
        switch self {
        case .nearest: return x <= 0.5 ? 1 : 0
        case .bilinear: return max(0, 1 - x)
        case .bicubic:
            if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
            return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
        case .lanczos: return x < 3 ? Self.sinc(x) * Self.sinc(x / 3) : 0
        }
    }

    private static func sinc(_ x: Double) -> Double {
        x == 0 ? 1 : sin(.pi * x) / (.pi * x)
    }
}

/// Which pixels of a row, by which weights, make each pixel of a part of the resized row.
struct ResamplingTaps {
    /// 22 bits leave room for the sign and for weights that sum to more than one on their way.
    static let bits: Int32 = 22
    static let half: Int32 = 1 << (bits - 1)

    let first: [Int]
    let count: [Int]
    /// `stride` weights a pixel, in fixed point.
    let weights: [Int32]
    let stride: Int

    /// `wanted` are the resized row's pixels to make; the filter widens with the ratio where the row shrinks.
    init(_ filter: ResamplingFilter, from size: Int, to resized: Int, wanted: Range<Int>) {
        let ratio = Double(size) / Double(resized)
        if filter == .nearest {
            self = ResamplingTaps(nearest: ratio, size: size, wanted: wanted)
            return
        }
        let widening = max(ratio, 1)
        let support = filter.support * widening
        let stride = Int(support.rounded(.up)) * 2 + 1
        var first: [Int] = [], count: [Int] = []
        var weights = [Int32](repeating: 0, count: wanted.count * stride)
        for (n, x) in wanted.enumerated() {
            let center = (Double(x) + 0.5) * ratio
            let low = max(0, Int(center - support + 0.5)), high = min(size, Int(center + support + 0.5))
            let values = (low..<high).map { filter.weight((Double($0) - center + 0.5) / widening) }
            let sum = values.reduce(0, +)
            for (k, value) in values.enumerated() {
                weights[n * stride + k] = Int32((value / sum * Double(1 << Self.bits)).rounded())
            }
            first.append(low)
            count.append(high - low)
        }
        (self.first, self.count, self.weights, self.stride) = (first, count, weights, stride)
    }

    /// The one pixel that lies under each wanted one's middle.
    ///
    /// Places are summed up, as Pillow sums them: where they fall between two pixels, rounding decides which it is.
    private init(nearest ratio: Double, size: Int, wanted: Range<Int>) {
        var place = ratio / 2, first: [Int] = []
        for x in 0..<wanted.upperBound {
            if x >= wanted.lowerBound { first.append(min(Int(place), size - 1)) }
            place += ratio
        }
        self.first = first
        count = [Int](repeating: 1, count: first.count)
        weights = [Int32](repeating: 1 << Self.bits, count: first.count)
        stride = 1
    }

    /// The pixels of the row that are needed at all.
    var range: Range<Int> {
        (first.first ?? 0)..<zip(first, count).reduce(0) { max($0, $1.0 + $1.1) }
    }
}
