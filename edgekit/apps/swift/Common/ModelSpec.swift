/// What the manifest says of a model: its files, its tensors, and how a photo becomes its input.
struct ModelSpec: Sendable {
    /// Name and extension of the model in the package's resources.
    let resource: String
    let resourceType: String
    /// Changes with the model's bytes: what is cached of another model is not taken for this one's.
    let fingerprint: String
    let input: Tensor
    let output: Tensor
    let preprocessing: Preprocessing

    /// One input or output; the batch is one photo.
    struct Tensor: Sendable {
        let name: String
        let shape: [Int]
        let element: Element
        /// For `uint8` and `int8`: value = (integer - zeroPoint) * scale.
        let scale: Double
        let zeroPoint: Int

        init(name: String, shape: [Int], element: Element = .float32, scale: Double = 1, zeroPoint: Int = 0) {
            self.name = name
            self.shape = shape
            self.element = element
            self.scale = scale
            self.zeroPoint = zeroPoint
        }

        var count: Int { shape.reduce(1, *) }
    }

    enum Element: Sendable {
        case float32, uint8, int8
    }
}

/// How a photo becomes the model's input: the shorter side resized, the centre cropped, (pixel * scale - mean) / std.
struct Preprocessing: Sendable {
    let resize: Int
    let cropWidth: Int
    let cropHeight: Int
    let filter: ResamplingFilter
    /// One value a channel, in the model's order of channels; one channel alone is luma.
    let mean: [Double]
    let std: [Double]
    let scale: Double
    /// Blue first.
    let isBGR: Bool
    /// Rows of pixels (NHWC) in place of planes (NCHW).
    let isChannelsLast: Bool

    var channels: Int { mean.count }
}
