// Runs what a package does to photos, on cases that Python wrote: cases.json, pixels in files beside it.
import Foundation

struct Failed: Error { let what: String }

let folder = URL(fileURLWithPath: CommandLine.arguments[1])

func json(_ name: String) throws -> [[String: Any]] {
    let data = try Data(contentsOf: folder.appendingPathComponent(name))
    guard let list = try JSONSerialization.jsonObject(with: data) as? [[String: Any]] else { throw Failed(what: name) }
    return list
}

func integer(_ entry: [String: Any], _ key: String) -> Int { (entry[key] as! NSNumber).intValue }
func number(_ entry: [String: Any], _ key: String) -> Double { (entry[key] as! NSNumber).doubleValue }
func text(_ entry: [String: Any], _ key: String) -> String { entry[key] as! String }
func numbers(_ entry: [String: Any], _ key: String) -> [Double] { (entry[key] as! [NSNumber]).map(\.doubleValue) }

func spec(_ entry: [String: Any]) -> ModelSpec {
    let filters: [String: ResamplingFilter] =
        ["nearest": .nearest, "bilinear": .bilinear, "bicubic": .bicubic, "lanczos": .lanczos]
    let elements: [String: ModelSpec.Element] = ["float32": .float32, "uint8": .uint8, "int8": .int8]
    let preprocessing = Preprocessing(
        resize: integer(entry, "resize"), cropWidth: integer(entry, "crop_width"),
        cropHeight: integer(entry, "crop_height"), filter: filters[text(entry, "filter")]!,
        mean: numbers(entry, "mean"), std: numbers(entry, "std"), scale: number(entry, "scale"),
        isBGR: entry["bgr"] as! Bool, isChannelsLast: entry["nhwc"] as! Bool)
    let input = ModelSpec.Tensor(
        name: "image", shape: [1], element: elements[text(entry, "dtype")]!,
        scale: number(entry, "input_scale"), zeroPoint: integer(entry, "zero_point"))
    return ModelSpec(
        resource: "", resourceType: "", fingerprint: "", input: input, output: input, preprocessing: preprocessing)
}

func pixels(_ entry: [String: Any], _ raw: UnsafeRawBufferPointer, luma: Bool) throws -> Pixels {
    let (width, height) = (integer(entry, "width"), integer(entry, "height"))
    let orientation = ImageOrientation(rawValue: integer(entry, "orientation"))!
    let base = raw.baseAddress!, bytesPerRow = integer(entry, "bytes_per_row")
    let layout = text(entry, "layout")
    if layout == "420" {
        let source = BiPlanarPixels(
            luma: base, lumaBytesPerRow: bytesPerRow, chroma: base + bytesPerRow * height,
            chromaBytesPerRow: bytesPerRow, width: width, height: height,
            matrix: ["601": .bt601, "709": .bt709, "2020": .bt2020][text(entry, "matrix")]!,
            isFullRange: entry["full_range"] as! Bool)
        return try Pixels(source, orientation: orientation, luma: luma)
    }
    let layouts: [String: InterleavedPixels.Layout] = ["rgba": .rgba, "bgra": .bgra, "grey": .grey]
    let source = InterleavedPixels(
        base: base, width: width, height: height, bytesPerRow: bytesPerRow, layout: layouts[layout]!)
    return try Pixels(source, orientation: orientation, luma: luma)
}

func bytes(_ input: ModelInput) -> Data {
    switch input.values {
    case .float32(let values): values.withUnsafeBytes { Data($0) }
    case .uint8(let values): Data(values)
    case .int8(let values): values.withUnsafeBytes { Data($0) }
    }
}

for (n, entry) in try json("cases.json").enumerated() {
    let spec = spec(entry)
    let raw = try Data(contentsOf: folder.appendingPathComponent(text(entry, "file")))
    let start = Date()
    let input = try raw.withUnsafeBytes {
        ModelInput(try pixels(entry, $0, luma: spec.preprocessing.channels == 1), spec)
    }
    print("\(text(entry, "name")): \(Int(-start.timeIntervalSinceNow * 1e3)) ms")
    try bytes(input).write(to: folder.appendingPathComponent("\(n).out"))
}

var answers: [[String: Any]] = []
for entry in try json("rankings.json") {
    let scores = numbers(entry, "scores").map { Float($0) }
    let found = try Ranking.top(integer(entry, "count"), of: scores, labels: scores.indices.map { "class \($0)" })
    answers.append([
        "indices": found.map(\.index), "labels": found.map(\.label),
        "probabilities": found.map { Double($0.probability) },
    ])
}
var refused: [String] = []
for scores: [Float] in [[1], [1, .nan], [.infinity, 1]] {
    do {
        _ = try Ranking.top(1, of: scores, labels: ["a", "b"])
    } catch let error as ClassificationError {
        refused.append(error.errorDescription ?? "")
    }
}
let labels = Labels.parse(String(decoding: try Data(contentsOf: folder.appendingPathComponent("labels.txt")), as: UTF8.self))
var golden: [[String: Any]] = []
for entry in try json("golden.json") {
    do {
        let read = try Safetensors(try Data(contentsOf: folder.appendingPathComponent(text(entry, "file"))))
        golden.append([
            "tensors": read.tensors.mapValues { ["shape": $0.shape, "values": $0.floats.map { Double($0) }] as [String: Any] }
        ])
    } catch let error as Safetensors.Damaged {
        golden.append(["damaged": error.description])
    }
}
var signals: [[String: Any]] = []
for entry in try json("signals.json") {
    let (r, a) = (numbers(entry, "reference").map { Float($0) }, numbers(entry, "actual").map { Float($0) })
    signals.append(["sqnr": Signal.sqnrDB(reference: r, actual: a), "top": Signal.agreesOnTop(reference: r, actual: a, floorDB: 40)])
}
let result: [String: Any] = [
    "rankings": answers, "refused": refused, "labels": labels.map { $0.unicodeScalars.map { Int($0.value) } },
    "golden": golden, "signals": signals,
    "literals": Literals.all.map { $0.unicodeScalars.map { Int($0.value) } },
]
try JSONSerialization.data(withJSONObject: result).write(to: folder.appendingPathComponent("result.json"))
