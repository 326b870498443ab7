package edgekit.demo.live

/**
 * How far a frame has to turn clockwise to be upright: 0, 90, 180 or 270 degrees.
 *
 * [sensorDegrees] is `SENSOR_ORIENTATION`; [displayDegrees] is how far the display is turned from the device's natural
 * orientation. A [facingFront] camera sees the device turn the other way.
 */
fun uprightDegrees(sensorDegrees: Int, displayDegrees: Int, facingFront: Boolean): Int {
    val turned = if (facingFront) sensorDegrees + displayDegrees else sensorDegrees - displayDegrees
    return turned.mod(360)
}

/** Width and height in pixels. */
data class PixelSize(val width: Int, val height: Int) {
    /** The same turned by a quarter. */
    fun turned(): PixelSize = PixelSize(height, width)
}

/**
 * How a preview, which a `TextureView` stretches to its own size, covers the view upright and undistorted.
 *
 * About the centre of the view: scale by ([scaleX], [scaleY]), turn clockwise by [degrees], scale by [zoom].
 */
data class PreviewFit(val scaleX: Float, val scaleY: Float, val degrees: Float, val zoom: Float)

/** The fit of a camera's [buffer] into a [view], both not empty. */
fun previewFit(view: PixelSize, buffer: PixelSize, sensorDegrees: Int, displayDegrees: Int): PreviewFit {
    // The texture comes upright for the device's natural orientation, whatever the display does.
    val natural = if (sensorDegrees % 180 == 0) buffer else buffer.turned()
    val shown = if (displayDegrees % 180 == 0) natural else natural.turned()
    return PreviewFit(
        scaleX = natural.width.toFloat() / view.width,
        scaleY = natural.height.toFloat() / view.height,
        degrees = -displayDegrees.toFloat(),
        zoom = maxOf(view.width.toFloat() / shown.width, view.height.toFloat() / shown.height),
    )
}

/** Of [sizes], the smallest 4:3 one whose shorter side has [shorter] pixels; else the nearest in that; null of none. */
fun frameSize(sizes: List<PixelSize>, shorter: Int): PixelSize? {
    val enough = sizes.filter { minOf(it.width, it.height) >= shorter }
    val fourToThree = enough.filter { 3 * maxOf(it.width, it.height) == 4 * minOf(it.width, it.height) }
    val area = { size: PixelSize -> size.width.toLong() * size.height }
    return fourToThree.minByOrNull(area) ?: enough.minByOrNull(area) ?: sizes.maxByOrNull(area)
}
