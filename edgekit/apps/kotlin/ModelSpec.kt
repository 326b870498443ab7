package edgekit.app

/** The order of an image's axes in a tensor. */
enum class Layout { NCHW, NHWC }

/** The type of a tensor's elements. */
enum class ElementType { FLOAT32, INT8, UINT8 }

/** The order of a pixel's channels in a tensor. */
enum class ChannelOrder { RGB, BGR }

/** The filter that resizes photos; all but [NEAREST] are antialiased. */
enum class Interpolation { NEAREST, BILINEAR, BICUBIC, LANCZOS }

/** What integers stand for: `(integer - zeroPoint) * scale`. */
data class Quantization(val scale: Float, val zeroPoint: Int)

/** The image that a model takes, one at a time. [quantization] is given for integers only. */
data class InputSpec(
    val width: Int,
    val height: Int,
    val channels: Int,
    val layout: Layout,
    val type: ElementType = ElementType.FLOAT32,
    val quantization: Quantization? = null,
) {
    /** How many elements the tensor has. */
    val size: Int get() = width * height * channels

    /** The tensor's shape, with the batch of one. */
    val shape: LongArray
        get() = when (layout) {
            Layout.NCHW -> longArrayOf(1, channels.toLong(), height.toLong(), width.toLong())
            Layout.NHWC -> longArrayOf(1, height.toLong(), width.toLong(), channels.toLong())
        }
}

/** The row of class scores that a model gives. */
data class OutputSpec(
    val classes: Int,
    val type: ElementType = ElementType.FLOAT32,
    val quantization: Quantization? = null,
)

/**
 * How a photo becomes the input: its shorter side is resized to [resize] pixels, the centre [cropWidth] x [cropHeight]
 * is taken, then each channel becomes `(pixel * scale - mean) / std`.
 *
 * [mean] and [std] have one value for grey models and three for colour, in the order of [channelOrder].
 */
data class Preprocess(
    val resize: Int,
    val cropWidth: Int,
    val cropHeight: Int,
    val interpolation: Interpolation,
    val mean: List<Float>,
    val std: List<Float>,
    val scale: Float,
    val channelOrder: ChannelOrder,
)

/**
 * All that running a model takes besides its file.
 *
 * [asset] is the model's path in the app's assets and [labelsAsset] that of its labels, one a line, or null where the
 * classes have no names. [sha256] is the model file's. [minSqnrDb] is how near a device's outputs have to be to the
 * golden ones.
 */
data class ModelSpec(
    val name: String,
    val asset: String,
    val labelsAsset: String?,
    val sha256: String,
    val input: InputSpec,
    val output: OutputSpec,
    val preprocess: Preprocess,
    val minSqnrDb: Double,
)
