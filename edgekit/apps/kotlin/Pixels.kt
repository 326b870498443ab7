package edgekit.app

/**
 * A picture that is read piece by piece, so that only what a model needs of it is ever converted.
 *
 * Coordinates are those of the stored picture, before any rotation.
 */
interface PixelSource {
    val width: Int
    val height: Int

    /**
     * Writes the rectangle's pixels to [into] from its start, row by row without gaps, as 0xAARRGGBB; the colours are
     * not multiplied by alpha, which is ignored.
     */
    fun read(left: Int, top: Int, width: Int, height: Int, into: IntArray)
}

/** A picture in memory: [argb] holds [width] x [height] pixels, row by row. */
class Pixels(private val argb: IntArray, override val width: Int, override val height: Int) : PixelSource {
    init {
        require(width > 0 && height > 0 && argb.size >= width * height) {
            "${argb.size} pixels are not $width x $height"
        }
    }

    override fun read(left: Int, top: Int, width: Int, height: Int, into: IntArray) {
        for (row in 0 until height) {
            System.arraycopy(argb, (top + row) * this.width + left, into, row * width, width)
        }
    }
}

/**
 * How a stored picture has to be turned to be upright, by EXIF's numbers 1 to 8.
 *
 * The upright pixel (x, y) is the stored pixel (x, y), or (y, x) where [swapsAxes]; then counted from the other end of
 * the stored row where [flipsX] and of the stored column where [flipsY].
 */
enum class Orientation(val exif: Int, val swapsAxes: Boolean, val flipsX: Boolean, val flipsY: Boolean) {
    UPRIGHT(1, false, false, false),
    MIRRORED(2, false, true, false),
    ROTATED_180(3, false, true, true),
    MIRRORED_180(4, false, false, true),
    TRANSPOSED(5, true, false, false),
    ROTATED_90(6, true, false, true),
    TRANSVERSED(7, true, true, true),
    ROTATED_270(8, true, true, false);

    companion object {
        /** By EXIF's number; what is none counts as upright, as viewers do it. */
        fun ofExif(number: Int): Orientation = entries.firstOrNull { it.exif == number } ?: UPRIGHT

        /**
         * Of a camera frame that has to be turned clockwise by [degrees] to be upright.
         *
         * Throws [IllegalArgumentException] where that is no multiple of 90.
         */
        fun ofRotation(degrees: Int): Orientation = when (degrees.mod(360)) {
            0 -> UPRIGHT
            90 -> ROTATED_90
            180 -> ROTATED_180
            270 -> ROTATED_270
            else -> throw IllegalArgumentException("$degrees degrees is no multiple of 90")
        }
    }
}
