package edgekit.app

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sin

/** Bits of fraction of a weight: 8 of the 32 hold the pixel and 2 what a filter overshoots, as in Pillow. */
private const val FRACTION = 22
private const val HALF = 1 shl (FRACTION - 1)

/**
 * What the outputs [from] until [until] of one axis are made of, when [size] pixels become [resized]: output
 * `from + n` is the sum of [counts]`[n]` inputs from [first]`[n]` on, each times its weight in [values], which begin at
 * `n * stride`.
 *
 * The filter is widened when shrinking (antialiasing), and weights add up to one, in fixed point.
 */
internal class AxisWeights(
    val size: Int,
    val resized: Int,
    val from: Int,
    val until: Int,
    interpolation: Interpolation,
) {
    val first = IntArray(until - from)
    val counts = IntArray(until - from)
    val stride: Int
    val values: IntArray

    /** The first input that any of the outputs needs. */
    val inputFrom: Int get() = first[0]

    /** The input after the last that any of the outputs needs. */
    val inputUntil: Int get() = first.last() + counts.last()

    init {
        when {
            size == resized || interpolation == Interpolation.NEAREST -> {
                stride = 1
                values = IntArray(until - from) { 1 shl FRACTION }
                single()
            }
            else -> {
                val filter = Filter.of(interpolation)
                val support = filter.support * max(1.0, size.toDouble() / resized)
                stride = ceil(support).toInt() * 2 + 1
                values = IntArray((until - from) * stride)
                weigh(filter, support)
            }
        }
    }

    /** Each output is the input under its centre. The place is summed up, not multiplied, and so rounds as Pillow's. */
    private fun single() {
        val step = size.toDouble() / resized
        var place = step * 0.5
        for (output in 0 until until) {
            if (output >= from) {
                first[output - from] = min(place.toInt(), size - 1)
                counts[output - from] = 1
            }
            place += step
        }
    }

    private fun weigh(filter: Filter, support: Double) {
        val step = size.toDouble() / resized
        val widened = 1.0 / max(1.0, step)
        val weights = DoubleArray(stride)
        for (n in first.indices) {
            val center = (from + n + 0.5) * step
            val begin = max(0, (center - support + 0.5).toInt())
            val count = min(size, (center + support + 0.5).toInt()) - begin
            var sum = 0.0
            for (k in 0 until count) {
                weights[k] = filter.weight((k + begin - center + 0.5) * widened)
                sum += weights[k]
            }
            for (k in 0 until count) {
                val scaled = (if (sum != 0.0) weights[k] / sum else weights[k]) * (1 shl FRACTION)
                values[n * stride + k] = (if (scaled < 0) scaled - 0.5 else scaled + 0.5).toInt()
            }
            first[n] = begin
            counts[n] = count
        }
    }
}

/** A filter's weight at a distance, in pixels of the smaller picture; zero from [support] on. */
private class Filter(val support: Double, val weight: (Double) -> Double) {
    companion object {
        fun of(interpolation: Interpolation): Filter = when (interpolation) {
            Interpolation.BILINEAR -> Filter(1.0) { x -> max(0.0, 1.0 - abs(x)) }
            Interpolation.BICUBIC -> Filter(2.0) { x -> cubic(abs(x)) }
            Interpolation.LANCZOS -> Filter(3.0) { x -> if (x >= -3.0 && x < 3.0) sinc(x) * sinc(x / 3) else 0.0 }
            Interpolation.NEAREST -> throw IllegalArgumentException("nearest has no weights")
        }

        /** Keys' cubic with a = -0.5. */
        private fun cubic(x: Double): Double = when {
            x < 1.0 -> (1.5 * x - 2.5) * x * x + 1
            x < 2.0 -> ((x - 5) * x + 8) * x * -0.5 + 2.0
            else -> 0.0
        }

        private fun sinc(x: Double): Double = if (x == 0.0) 1.0 else sin(x * PI) / (x * PI)
    }
}

/**
 * Resizes a part of an upright photo: first along rows, then along columns, each rounded to 8 bits.
 *
 * Not thread-safe: its buffers are reused from photo to photo.
 */
internal class Resampler(private val grey: Boolean) {
    private var strip = IntArray(0)
    private var rows = IntArray(0)

    /**
     * Writes the outputs of [x] and [y] as 0x00RRGGBB (grey: 0x000000LL) to [into], the first at [offset] and rows
     * [pitch] apart.
     */
    fun resample(
        source: PixelSource,
        orientation: Orientation,
        x: AxisWeights,
        y: AxisWeights,
        into: IntArray,
        offset: Int,
        pitch: Int,
    ) {
        val width = x.until - x.from
        val height = y.inputUntil - y.inputFrom
        if (rows.size < width * height) rows = IntArray(width * height)
        for (begin in 0 until height step STRIP) {
            val count = min(STRIP, height - begin)
            alongRows(source, orientation, x, y.inputFrom + begin, count, begin * width)
        }
        for (row in 0 until y.until - y.from) {
            alongColumn(y, row, width, into, offset + row * pitch)
        }
    }

    /** [count] rows of the upright photo from [top] on, resized, to [rows] at [out]. */
    private fun alongRows(
        source: PixelSource,
        orientation: Orientation,
        x: AxisWeights,
        top: Int,
        count: Int,
        out: Int,
    ) {
        val length = x.inputUntil - x.inputFrom
        if (strip.size < length * STRIP) strip = IntArray(length * STRIP)
        val walk = read(source, orientation, x.inputFrom, top, length, count)
        val width = x.until - x.from
        for (row in 0 until count) {
            val start = walk.start + row * walk.down - x.inputFrom * walk.across
            for (n in 0 until width) {
                rows[out + row * width + n] =
                    weighted(strip, start + x.first[n] * walk.across, walk.across, x.values, n * x.stride, x.counts[n])
            }
        }
    }

    private fun alongColumn(y: AxisWeights, row: Int, width: Int, into: IntArray, out: Int) {
        val start = (y.first[row] - y.inputFrom) * width
        for (n in 0 until width) {
            into[out + n] = weighted(rows, start + n, width, y.values, row * y.stride, y.counts[row])
        }
    }

    /** How to find upright pixels in [strip]: the first, and the steps to the next of its row and of its column. */
    private class Walk(val start: Int, val across: Int, val down: Int)

    /** Reads a rectangle of the upright photo into [strip], as it is stored. */
    private fun read(
        source: PixelSource,
        orientation: Orientation,
        left: Int,
        top: Int,
        width: Int,
        height: Int,
    ): Walk {
        val swaps = orientation.swapsAxes
        val storedWidth = if (swaps) height else width
        val storedHeight = if (swaps) width else height
        val x = if (swaps) top else left
        val y = if (swaps) left else top
        source.read(
            if (orientation.flipsX) source.width - x - storedWidth else x,
            if (orientation.flipsY) source.height - y - storedHeight else y,
            storedWidth,
            storedHeight,
            strip,
        )
        if (grey) for (n in 0 until width * height) strip[n] = luma(strip[n])
        val right = if (orientation.flipsX) -1 else 1
        val down = if (orientation.flipsY) -storedWidth else storedWidth
        val start = (if (right < 0) storedWidth - 1 else 0) + (if (down < 0) (storedHeight - 1) * storedWidth else 0)
        return if (swaps) Walk(start, down, right) else Walk(start, right, down)
    }

    /** BT.601's luma with 16 bits of fraction, rounded. */
    private fun luma(pixel: Int): Int =
        (19595 * (pixel shr 16 and 0xff) + 38470 * (pixel shr 8 and 0xff) + 7471 * (pixel and 0xff) + 0x8000) shr 16

    /** The weighted sum of [count] pixels from [start] on, [step] apart, each channel rounded and clipped to 8 bits. */
    private fun weighted(pixels: IntArray, start: Int, step: Int, weights: IntArray, from: Int, count: Int): Int {
        if (count == 1) return pixels[start] and 0xffffff
        var r = HALF
        var g = HALF
        var b = HALF
        var at = start
        for (k in from until from + count) {
            val pixel = pixels[at]
            val weight = weights[k]
            r += (pixel shr 16 and 0xff) * weight
            g += (pixel shr 8 and 0xff) * weight
            b += (pixel and 0xff) * weight
            at += step
        }
        return (eightBits(r) shl 16) or (eightBits(g) shl 8) or eightBits(b)
    }

    private fun eightBits(sum: Int): Int {
        val value = sum shr FRACTION
        return if (value < 0) 0 else if (value > 255) 255 else value
    }

    private companion object {
        /** Rows that are read at once: of a photo that lies on its side, a cache line's worth of columns. */
        const val STRIP = 16
    }
}
