package edgekit.app

import java.nio.ByteBuffer

/** One plane of a camera frame: element (x, y) is the byte at `y * rowStride + x * pixelStride`. */
class Plane(val buffer: ByteBuffer, val rowStride: Int, val pixelStride: Int)

/**
 * A camera frame (YUV_420_888, full-range BT.601 as Android's cameras give it), of which the rectangle from
 * ([left], [top]) is seen.
 *
 * Chroma is that of the 2 x 2 block around a pixel, not interpolated. The planes' memory is read, not kept: the frame
 * has to stay open as long as this is used.
 */
class YuvPixels(
    override val width: Int,
    override val height: Int,
    y: Plane,
    u: Plane,
    v: Plane,
    private val left: Int = 0,
    private val top: Int = 0,
) : PixelSource {
    private val luma = PlaneRows(y)
    private val blue = PlaneRows(u)
    private val red = PlaneRows(v)

    override fun read(left: Int, top: Int, width: Int, height: Int, into: IntArray) {
        val x0 = this.left + left
        val chromaLeft = x0 shr 1
        val chromaWidth = ((x0 + width - 1) shr 1) - chromaLeft + 1
        var out = 0
        for (row in this.top + top until this.top + top + height) {
            val ys = luma.row(row, x0, width)
            val us = blue.row(row shr 1, chromaLeft, chromaWidth)
            val vs = red.row(row shr 1, chromaLeft, chromaWidth)
            for (x in 0 until width) {
                val chroma = ((x0 + x) shr 1) - chromaLeft
                into[out++] = argb(
                    ys[x * luma.step].toInt() and 0xff,
                    (us[chroma * blue.step].toInt() and 0xff) - 128,
                    (vs[chroma * red.step].toInt() and 0xff) - 128,
                )
            }
        }
    }

    /** BT.601 with 16 bits of fraction, rounded. */
    private fun argb(y: Int, u: Int, v: Int): Int {
        val base = (y shl 16) + (1 shl 15)
        val r = clipped((base + 91881 * v) shr 16)
        val g = clipped((base - 22554 * u - 46802 * v) shr 16)
        val b = clipped((base + 116130 * u) shr 16)
        return (0xff shl 24) or (r shl 16) or (g shl 8) or b
    }

    private fun clipped(value: Int): Int = if (value < 0) 0 else if (value > 255) 255 else value
}

/** Pieces of a plane's rows, copied out of the buffer at once: single bytes of a direct buffer are slow to get. */
private class PlaneRows(private val plane: Plane) {
    /** Bytes from one element to the next in what [row] gives. */
    val step: Int = plane.pixelStride
    private val source: ByteBuffer = plane.buffer.duplicate()
    private val start: Int = plane.buffer.position()
    private var bytes = ByteArray(0)

    /** [count] elements of row [y] from [x] on; valid until the next call. */
    fun row(y: Int, x: Int, count: Int): ByteArray {
        val length = (count - 1) * step + 1
        if (bytes.size < length) bytes = ByteArray(length)
        source.position(start + y * plane.rowStride + x * step)
        source.get(bytes, 0, length)
        return bytes
    }
}
