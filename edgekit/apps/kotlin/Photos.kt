package edgekit.app

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.Image
import android.net.Uri
import androidx.exifinterface.media.ExifInterface
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream

/** The pixels of a bitmap; of one that the CPU cannot read (a hardware bitmap) those of a copy. */
class BitmapPixels(bitmap: Bitmap) : PixelSource {
    private val readable: Bitmap =
        if (bitmap.config == Bitmap.Config.ARGB_8888) bitmap else bitmap.copy(Bitmap.Config.ARGB_8888, false)
    override val width: Int = readable.width
    override val height: Int = readable.height

    override fun read(left: Int, top: Int, width: Int, height: Int, into: IntArray) =
        readable.getPixels(into, 0, width, left, top, width, height)
}

/** What a camera frame's crop rectangle shows; the frame has to stay open as long as it is used. */
fun Image.pixels(): YuvPixels {
    val (y, u, v) = planes.map { Plane(it.buffer, it.rowStride, it.pixelStride) }
    val crop = cropRect
    return YuvPixels(crop.width(), crop.height(), y, u, v, crop.left, crop.top)
}

/** A photo as it is stored, and how it has to be turned. */
class DecodedPhoto(val bitmap: Bitmap, val orientation: Orientation)

/**
 * A photo of the gallery or of a file. Blocks.
 *
 * One of more than 24 megapixels is decoded at half its size (or a quarter, ...), so that it fits into an app's memory.
 * Throws [IOException] where it cannot be read or decoded.
 */
fun decodePhoto(resolver: ContentResolver, photo: Uri): DecodedPhoto {
    fun <T> read(use: (InputStream) -> T): T =
        (resolver.openInputStream(photo) ?: throw FileNotFoundException("$photo")).use(use)

    val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    read { BitmapFactory.decodeStream(it, null, options) }
    options.inJustDecodeBounds = false
    options.inPreferredConfig = Bitmap.Config.ARGB_8888
    options.inPremultiplied = false // colours as they are stored: alpha is ignored
    options.inSampleSize = sampling(options.outWidth, options.outHeight)
    val bitmap = read { BitmapFactory.decodeStream(it, null, options) } ?: throw IOException("$photo is no photo")
    val exif = read { ExifInterface(it).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1) }
    return DecodedPhoto(bitmap, Orientation.ofExif(exif))
}

private const val MOST_PIXELS = 24_000_000L

/** The smallest power of two by which both sides are divided to stay below [MOST_PIXELS]. */
internal fun sampling(width: Int, height: Int): Int {
    var divisor = 1
    while (width.toLong() / divisor * (height / divisor) > MOST_PIXELS) divisor *= 2
    return divisor
}
