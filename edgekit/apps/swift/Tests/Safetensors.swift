import Foundation

/// Tensors of 32-bit floats, 8-bit or 32-bit integers from a `.safetensors` file: a length, a JSON header, the values.
struct Safetensors {
    struct Tensor: Equatable {
        let shape: [Int]
        /// "F32", "I32", "I8" or "U8".
        let dtype: String
        /// The values in their own type, little-endian.
        let bytes: Data

        /// The values as floats.
        var floats: [Float] {
            switch dtype {
            case "F32": words { Float(bitPattern: $0) }
            case "I32": words { Float(Int32(bitPattern: $0)) }
            case "I8": bytes.map { Float(Int8(bitPattern: $0)) }
            default: bytes.map { Float($0) }
            }
        }

        private func words(_ value: (UInt32) -> Float) -> [Float] {
            bytes.withUnsafeBytes { raw in
                (0..<raw.count / 4).map {
                    value(UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
                }
            }
        }
    }

    struct Damaged: Error, CustomStringConvertible {
        let description: String
    }

    let tensors: [String: Tensor]

    /// Throws `Damaged` for a file whose parts do not fit each other.
    init(_ data: Data) throws {
        guard data.count >= 8 else { throw Damaged(description: "\(data.count) bytes hold no header") }
        let length = data.prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard length <= UInt64(data.count - 8) else { throw Damaged(description: "the header is cut off") }
        let body = data.startIndex + 8 + Int(length)
        let header = try? JSONSerialization.jsonObject(with: data[data.startIndex + 8..<body])
        guard let entries = header as? [String: Any] else { throw Damaged(description: "the header is no JSON object") }
        var tensors: [String: Tensor] = [:]
        for (name, entry) in entries where name != "__metadata__" {
            tensors[name] = try Self.tensor(name, entry, data[body...])
        }
        self.tensors = tensors
    }

    private static func tensor(_ name: String, _ entry: Any, _ values: Data) throws -> Tensor {
        guard let entry = entry as? [String: Any], let dtype = entry["dtype"] as? String,
            let shape = entry["shape"] as? [Int], let offsets = entry["data_offsets"] as? [Int], offsets.count == 2
        else { throw Damaged(description: "\(name) lacks a type, a shape or its place") }
        guard let size = ["F32": 4, "I32": 4, "I8": 1, "U8": 1][dtype] else {
            throw Damaged(description: "\(name) is of type \(dtype), which is not read")
        }
        var bytes = size
        for side in shape {
            let (product, overflows) = bytes.multipliedReportingOverflow(by: side)
            guard side >= 0, !overflows else { throw Damaged(description: "\(name) has the shape \(shape)") }
            bytes = product
        }
        let (begin, end) = (offsets[0], offsets[1])
        guard begin >= 0, begin <= end, end <= values.count, end - begin == bytes else {
            throw Damaged(description: "\(name) lies at \(begin) to \(end) of \(values.count) bytes and needs \(bytes)")
        }
        return Tensor(shape: shape, dtype: dtype, bytes: values[values.startIndex + begin..<values.startIndex + end])
    }
}
