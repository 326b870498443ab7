/// A camera frame of two planes: luma, and Cb and Cr at half the size; both have to outlive it.
struct BiPlanarPixels: PixelSource {
    let luma: UnsafePointer<UInt8>
    let chroma: UnsafePointer<UInt8>
    let lumaBytesPerRow: Int
    let chromaBytesPerRow: Int
    let width: Int
    let height: Int
    private let weights: Weights

    /// What Y, Cb and Cr are of red, green and blue: ITU-R recommendations by number.
    enum Matrix: Sendable {
        case bt601, bt709, bt2020
    }

    init(
        luma: UnsafeRawPointer, lumaBytesPerRow: Int, chroma: UnsafeRawPointer, chromaBytesPerRow: Int,
        width: Int, height: Int, matrix: Matrix, isFullRange: Bool
    ) {
        self.luma = luma.assumingMemoryBound(to: UInt8.self)
        self.chroma = chroma.assumingMemoryBound(to: UInt8.self)
        self.lumaBytesPerRow = lumaBytesPerRow
        self.chromaBytesPerRow = chromaBytesPerRow
        self.width = width
        self.height = height
        weights = Weights(matrix, isFullRange: isFullRange)
    }

    @inline(__always)
    func rgb(_ x: Int, _ y: Int) -> (UInt8, UInt8, UInt8) {
        let pair = chroma + (y >> 1) &* chromaBytesPerRow + (x & ~1)
        let light = (Int32(luma[y &* lumaBytesPerRow + x]) &- weights.black) &* weights.light &+ 32768
        let cb = Int32(pair[0]) &- 128, cr = Int32(pair[1]) &- 128
        return (
            clamped((light &+ weights.redOfCr &* cr) >> 16),
            clamped((light &- weights.greenOfCb &* cb &- weights.greenOfCr &* cr) >> 16),
            clamped((light &+ weights.blueOfCb &* cb) >> 16)
        )
    }

    /// In 16-bit fixed point.
    private struct Weights {
        let black: Int32
        let light: Int32
        let redOfCr: Int32
        let greenOfCb: Int32
        let greenOfCr: Int32
        let blueOfCb: Int32

        init(_ matrix: Matrix, isFullRange: Bool) {
            let (red, blue) =
                switch matrix {
                case .bt601: (0.299, 0.114)
                case .bt709: (0.2126, 0.0722)
                case .bt2020: (0.2627, 0.0593)
                }
            let green = 1 - red - blue
            // Video range leaves head and foot room: luma from 16 to 235, chroma 112 levels to each side.
            let chroma = isFullRange ? 1 : 255.0 / 224
            func fixed(_ value: Double) -> Int32 { Int32((value * 65536).rounded()) }
            black = isFullRange ? 0 : 16
            light = fixed(isFullRange ? 1 : 255.0 / 219)
            redOfCr = fixed(2 * (1 - red) * chroma)
            greenOfCb = fixed(2 * (1 - blue) * blue / green * chroma)
            greenOfCr = fixed(2 * (1 - red) * red / green * chroma)
            blueOfCb = fixed(2 * (1 - blue) * chroma)
        }
    }
}

/// `value` as a byte.
@inline(__always)
func clamped(_ value: Int32) -> UInt8 {
    UInt8(truncatingIfNeeded: min(max(value, 0), 255))
}
