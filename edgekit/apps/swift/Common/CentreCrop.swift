/// The centre of a photo whose shorter side was resized; black where the crop is larger than the photo.
struct CentreCrop {
    let width: Int
    let height: Int
    let channels: Int
    /// Rows of pixels without padding.
    let bytes: [UInt8]

    init(_ pixels: Pixels, _ preprocessing: Preprocessing) {
        width = preprocessing.cropWidth
        height = preprocessing.cropHeight
        channels = pixels.channels
        let shorter = max(preprocessing.resize, 1), least = min(pixels.width, pixels.height)
        let ratio = Double(shorter) / Double(least)
        func resized(_ side: Int) -> Int {
            least == shorter ? side : max(shorter, Int((Double(side) * ratio).rounded(.toNearestOrEven)))
        }
        let columns = Self.place(width, in: resized(pixels.width)), rows = Self.place(height, in: resized(pixels.height))
        var bytes = [UInt8](repeating: 0, count: width * height * channels)
        let target = Target(left: columns.target, top: rows.target, width: width)
        if least == shorter {
            Self.copy(pixels, columns.source, rows.source, to: target, in: &bytes)
        } else {
            let across = ResamplingTaps(
                preprocessing.filter, from: pixels.width, to: resized(pixels.width), wanted: columns.source)
            let down = ResamplingTaps(
                preprocessing.filter, from: pixels.height, to: resized(pixels.height), wanted: rows.source)
            let needed = down.range
            // Across first, only where the crop looks, each pass rounded to 8 bits: as Pillow does.
            let narrowed = Self.resizedAcross(pixels, across, rows: needed)
            Self.resizeDown(
                narrowed, rowBytes: columns.source.count * channels, firstRow: needed.lowerBound, down, channels,
                to: target, in: &bytes)
        }
        self.bytes = bytes
    }

    private struct Target {
        let left: Int
        let top: Int
        let width: Int
    }

    /// Which of a side's pixels the crop shows, and where in the crop they begin.
    private static func place(_ crop: Int, in side: Int) -> (source: Range<Int>, target: Int) {
        let start = Int((Double(side - crop) / 2).rounded(.toNearestOrEven))
        let source = max(start, 0)..<min(start + crop, side)
        return (source, source.lowerBound - start)
    }

    private static func copy(
        _ pixels: Pixels, _ columns: Range<Int>, _ rows: Range<Int>, to target: Target, in bytes: inout [UInt8]
    ) {
        let channels = pixels.channels, length = columns.count * channels
        for (n, y) in rows.enumerated() {
            let from = (y * pixels.width + columns.lowerBound) * channels
            let to = ((target.top + n) * target.width + target.left) * channels
            bytes.replaceSubrange(to..<to + length, with: pixels.bytes[from..<from + length])
        }
    }

    private static func resizedAcross(_ pixels: Pixels, _ taps: ResamplingTaps, rows: Range<Int>) -> [UInt8] {
        let channels = pixels.channels, columns = taps.first.count
        return [UInt8](unsafeUninitializedCapacity: rows.count * columns * channels) { result, count in
            count = rows.count * columns * channels
            pixels.bytes.withUnsafeBufferPointer { source in
                taps.weights.withUnsafeBufferPointer { weights in
                    guard var out = result.baseAddress else { return }
                    for y in rows {
                        let row = y * pixels.width * channels
                        for column in 0..<columns {
                            let start = row + taps.first[column] * channels, tap = column * taps.stride
                            for channel in 0..<channels {
                                var sum = ResamplingTaps.half
                                var at = start + channel
                                for k in tap..<tap + taps.count[column] {
                                    sum &+= weights[k] &* Int32(source[at])
                                    at += channels
                                }
                                out.pointee = clamped(sum >> ResamplingTaps.bits)
                                out += 1
                            }
                        }
                    }
                }
            }
        }
    }

    private static func resizeDown(
        _ narrowed: [UInt8], rowBytes: Int, firstRow: Int, _ taps: ResamplingTaps, _ channels: Int,
        to target: Target, in bytes: inout [UInt8]
    ) {
        var sums = [Int32](repeating: 0, count: rowBytes)
        for n in taps.first.indices {
            let to = ((target.top + n) * target.width + target.left) * channels
            narrowed.withUnsafeBufferPointer { source in
                sums.withUnsafeMutableBufferPointer { sums in
                    sums.update(repeating: ResamplingTaps.half)
                    for k in 0..<taps.count[n] {
                        let weight = taps.weights[n * taps.stride + k]
                        let row = (taps.first[n] + k - firstRow) * rowBytes
                        for i in 0..<rowBytes {
                            sums[i] &+= weight &* Int32(source[row + i])
                        }
                    }
                    for i in 0..<rowBytes {
                        bytes[to + i] = clamped(sums[i] >> ResamplingTaps.bits)
                    }
                }
            }
        }
    }
}
