package edgekit.app

import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

/**
 * Makes a model's input of a photo, as [ModelSpec.preprocess] says: the same tensor as edgekit's in Python.
 *
 * Not thread-safe, and an input is valid until the next call: buffers are reused from photo to photo.
 */
class Preprocessor(private val spec: ModelSpec) {
    private val preprocess = spec.preprocess
    private val input = spec.input
    private val channels = input.channels
    private val shifts: IntArray = when {
        channels == 1 -> intArrayOf(0)
        preprocess.channelOrder == ChannelOrder.RGB -> intArrayOf(16, 8, 0)
        else -> intArrayOf(0, 8, 16)
    }
    private val resampler = Resampler(grey = channels == 1)
    private val canvas = IntArray(preprocess.cropWidth * preprocess.cropHeight)
    private val floatOf: Array<FloatArray>
    private val byteOf: Array<ByteArray>
    private val floats: ModelInput.Floats?
    private val bytes: ModelInput.Bytes?
    private var columns: AxisWeights? = null
    private var lines: AxisWeights? = null

    init {
        require(input.width == preprocess.cropWidth && input.height == preprocess.cropHeight) {
            "an input of ${input.width} x ${input.height}, a crop of ${preprocess.cropWidth} x ${preprocess.cropHeight}"
        }
        require(channels in listOf(1, 3) && preprocess.mean.size == channels && preprocess.std.size == channels) {
            "$channels channels with ${preprocess.mean.size} means and ${preprocess.std.size} deviations"
        }
        // A channel has 256 values: each is computed once.
        floatOf = Array(channels) { c -> FloatArray(256) { normalized(it, c) } }
        val integers = input.type != ElementType.FLOAT32
        byteOf = if (integers) Array(channels) { c -> ByteArray(256) { quantized(floatOf[c][it]) } } else emptyArray()
        floats = if (integers) null else ModelInput.Floats(FloatArray(input.size))
        bytes = if (integers) ModelInput.Bytes(ByteArray(input.size)) else null
    }

    /** The input for one photo, which [orientation] turns upright. */
    fun prepare(source: PixelSource, orientation: Orientation = Orientation.UPRIGHT): ModelInput {
        crop(source, orientation)
        floats?.let { fill { at, channel, value -> it.values[at] = floatOf[channel][value] } }
        bytes?.let { fill { at, channel, value -> it.values[at] = byteOf[channel][value] } }
        return floats ?: bytes!!
    }

    /** Resizes to [canvas] what the crop shows of the photo; it is black where the crop lies beyond it. */
    private fun crop(source: PixelSource, orientation: Orientation) {
        val width = if (orientation.swapsAxes) source.height else source.width
        val height = if (orientation.swapsAxes) source.width else source.height
        val shorter = min(width, height)
        val ratio = preprocess.resize.toDouble() / shorter
        // Where the shorter side is as it should be the ratio is 1, and nothing changes.
        val resizedWidth = max(preprocess.resize, rounded(width * ratio))
        val resizedHeight = max(preprocess.resize, rounded(height * ratio))
        val left = rounded((resizedWidth - preprocess.cropWidth) / 2.0)
        val top = rounded((resizedHeight - preprocess.cropHeight) / 2.0)
        val x = weights(columns, width, resizedWidth, left, preprocess.cropWidth).also { columns = it }
        val y = weights(lines, height, resizedHeight, top, preprocess.cropHeight).also { lines = it }
        if (x.until - x.from < preprocess.cropWidth || y.until - y.from < preprocess.cropHeight) canvas.fill(0)
        val offset = (y.from - top) * preprocess.cropWidth + x.from - left
        resampler.resample(source, orientation, x, y, canvas, offset, preprocess.cropWidth)
    }

    /** Those of the photo before, where it had the same size: frames of a camera do. */
    private fun weights(last: AxisWeights?, size: Int, resized: Int, start: Int, length: Int): AxisWeights {
        val from = max(0, start)
        val until = min(resized, start + length)
        val same = last != null && last.size == size && last.resized == resized
        return if (same && last.from == from && last.until == until) last
        else AxisWeights(size, resized, from, until, preprocess.interpolation)
    }

    private inline fun fill(put: (at: Int, channel: Int, value: Int) -> Unit) {
        val planar = input.layout == Layout.NCHW
        for (channel in 0 until channels) {
            val shift = shifts[channel]
            var at = if (planar) channel * canvas.size else channel
            val step = if (planar) 1 else channels
            for (pixel in canvas) {
                put(at, channel, pixel shr shift and 0xff)
                at += step
            }
        }
    }

    private fun normalized(value: Int, channel: Int): Float =
        (value.toFloat() * preprocess.scale - preprocess.mean[channel]) / preprocess.std[channel]

    private fun quantized(value: Float): Byte {
        val quantization = input.quantization ?: Quantization(1f, 0)
        val integer = round(value / quantization.scale).toInt() + quantization.zeroPoint
        val lowest = if (input.type == ElementType.UINT8) 0 else -128
        return min(max(integer, lowest), lowest + 255).toByte()
    }

    /** To the nearest integer, of two the even one, as Python rounds. */
    private fun rounded(value: Double): Int = round(value).toInt()
}
