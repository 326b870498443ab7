/// A photo, upright: 8 bits a channel, rows from the top without padding, red, green, blue (or luma alone).
struct Pixels: Sendable {
    let width: Int
    let height: Int
    /// 3, or 1 for luma.
    let channels: Int
    let bytes: [UInt8]

    /// Reads `source`, held as `orientation` says, and turns it upright. Alpha is dropped, not composited.
    ///
    /// Throws `ClassificationError.emptyImage` where there is no pixel.
    init(_ source: some PixelSource, orientation: ImageOrientation, luma: Bool) throws {
        let width = source.width, height = source.height
        guard width > 0, height > 0 else { throw ClassificationError.emptyImage }
        let channels = luma ? 1 : 3
        let walk = orientation.walk(width: width, height: height)
        self.width = orientation.swapsSides ? height : width
        self.height = orientation.swapsSides ? width : height
        self.channels = channels
        bytes = [UInt8](unsafeUninitializedCapacity: width * height * channels) { buffer, count in
            guard let target = buffer.baseAddress else { return }
            if luma {
                source.eachPixel { x, y, red, green, blue in
                    target[walk.start + x &* walk.right + y &* walk.down] = Self.luma(red, green, blue)
                }
            } else {
                source.eachPixel { x, y, red, green, blue in
                    let pixel = target + 3 &* (walk.start + x &* walk.right + y &* walk.down)
                    pixel[0] = red
                    pixel[1] = green
                    pixel[2] = blue
                }
            }
            count = width * height * channels
        }
    }

    /// Luma as ITU-R 601 weighs it, in 16-bit fixed point.
    @inline(__always)
    private static func luma(_ red: UInt8, _ green: UInt8, _ blue: UInt8) -> UInt8 {
        let red: UInt32 = 19595 &* UInt32(red)
        let green: UInt32 = 38470 &* UInt32(green)
        let blue: UInt32 = 7471 &* UInt32(blue)
        return UInt8(truncatingIfNeeded: (red &+ green &+ blue &+ 32768) >> 16)
    }
}

/// Pixels somewhere in memory, in the order of a sensor or a file.
protocol PixelSource {
    var width: Int { get }
    var height: Int { get }
    /// Red, green and blue of the pixel in column `x` and row `y`.
    func rgb(_ x: Int, _ y: Int) -> (UInt8, UInt8, UInt8)
}

extension PixelSource {
    /// Square by square: a photo that is turned on its way writes down columns, which whole rows would thrash.
    @inline(__always)
    func eachPixel(_ body: (_ x: Int, _ y: Int, _ red: UInt8, _ green: UInt8, _ blue: UInt8) -> Void) {
        let side = 32
        for top in stride(from: 0, to: height, by: side) {
            for left in stride(from: 0, to: width, by: side) {
                for y in top..<min(top + side, height) {
                    for x in left..<min(left + side, width) {
                        let (red, green, blue) = rgb(x, y)
                        body(x, y, red, green, blue)
                    }
                }
            }
        }
    }
}

/// Interleaved bytes, such as RGBA, BGRA or grey, in rows of `bytesPerRow`; `base` has to outlive it.
struct InterleavedPixels: PixelSource {
    let base: UnsafeRawPointer
    let width: Int
    let height: Int
    let bytesPerRow: Int
    let layout: Layout

    struct Layout: Sendable {
        let bytesPerPixel: Int
        let red: Int
        let green: Int
        let blue: Int

        static let rgba = Layout(bytesPerPixel: 4, red: 0, green: 1, blue: 2)
        static let bgra = Layout(bytesPerPixel: 4, red: 2, green: 1, blue: 0)
        static let grey = Layout(bytesPerPixel: 1, red: 0, green: 0, blue: 0)
    }

    @inline(__always)
    func rgb(_ x: Int, _ y: Int) -> (UInt8, UInt8, UInt8) {
        let pixel = (base + y &* bytesPerRow + x &* layout.bytesPerPixel).assumingMemoryBound(to: UInt8.self)
        return (pixel[layout.red], pixel[layout.green], pixel[layout.blue])
    }
}
