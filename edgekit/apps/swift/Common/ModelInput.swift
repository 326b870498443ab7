/// A photo as the model takes it: prepared once, and safe to hand from one thread to another.
public struct ModelInput: Sendable {
    /// What the tensor's elements are.
    enum Values: Sendable, Equatable {
        case float32([Float])
        case uint8([UInt8])
        case int8([Int8])
    }

    let values: Values
    let shape: [Int]

    init(values: Values, shape: [Int]) {
        (self.values, self.shape) = (values, shape)
    }

    /// Resizes, crops and normalizes as the model was trained; integers are quantized by the input's own scale.
    init(_ pixels: Pixels, _ spec: ModelSpec) {
        let crop = CentreCrop(pixels, spec.preprocessing)
        let tables = Self.tables(spec.preprocessing)
        func integers<Byte: FixedWidthInteger>(_: Byte.Type) -> [Byte] {
            Self.arranged(crop, spec.preprocessing, tables.map { $0.map { Self.quantized($0, spec.input) } })
        }
        shape = spec.input.shape
        values =
            switch spec.input.element {
            case .float32: .float32(Self.arranged(crop, spec.preprocessing, tables))
            case .uint8: .uint8(integers(UInt8.self))
            case .int8: .int8(integers(Int8.self))
            }
    }

    /// What each of the 256 levels becomes, by channel.
    private static func tables(_ spec: Preprocessing) -> [[Float]] {
        zip(spec.mean, spec.std).map { mean, std in
            (0..<256).map { (Float($0) * Float(spec.scale) - Float(mean)) / Float(std) }
        }
    }

    private static func quantized<Byte: FixedWidthInteger>(_ value: Float, _ tensor: ModelSpec.Tensor) -> Byte {
        let level = (Double(value) / tensor.scale).rounded(.toNearestOrEven) + Double(tensor.zeroPoint)
        return Byte(min(max(level, Double(Byte.min)), Double(Byte.max)))
    }

    /// The crop's bytes, each by the table of its channel, in the model's order of channels and axes.
    private static func arranged<Value>(_ crop: CentreCrop, _ spec: Preprocessing, _ tables: [[Value]]) -> [Value] {
        let channels = crop.channels, area = crop.width * crop.height
        // A pixel's steps: to its neighbour, and from a channel to the next.
        let (along, across) = spec.isChannelsLast ? (channels, 1) : (1, area)
        return [Value](unsafeUninitializedCapacity: area * channels) { result, count in
            crop.bytes.withUnsafeBufferPointer { bytes in
                guard let target = result.baseAddress else { return }
                for channel in 0..<channels {
                    let from = spec.isBGR ? channels - 1 - channel : channel
                    tables[channel].withUnsafeBufferPointer { table in
                        for pixel in 0..<area {
                            let level = Int(bytes[pixel &* channels &+ from])
                            (target + (pixel &* along &+ channel &* across)).initialize(to: table[level])
                        }
                    }
                }
            }
            count = area * channels
        }
    }
}
