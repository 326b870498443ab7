package edgekit.app

import android.content.Context
import android.graphics.Bitmap
import android.media.Image
import android.net.Uri
import java.util.concurrent.atomic.AtomicBoolean
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext

/** The likeliest classes of a photo, likeliest first, and how long they took in nanoseconds. */
data class Classification(val predictions: List<Prediction>, val prepareNanos: Long, val runNanos: Long)

/**
 * Classifies photos with a model, which it owns: [close] it when done.
 *
 * Safe to call from any thread and coroutine: work runs on [dispatcher], one photo after the other. A call that is
 * cancelled while its photo is computed throws when that is done.
 */
open class Classifier(
    private val model: Model,
    val labels: List<String>,
    private val dispatcher: CoroutineDispatcher = Dispatchers.Default,
) : AutoCloseable {
    /** What the model takes and gives. */
    val spec: ModelSpec get() = model.spec

    private val mutex = Mutex()
    private val preprocessor = Preprocessor(model.spec)
    private val closed = AtomicBoolean()

    /**
     * The [topK] likeliest classes of a bitmap that has to be turned clockwise by [rotationDegrees] to be upright.
     *
     * Throws [IllegalStateException] after [close].
     */
    suspend fun classify(bitmap: Bitmap, rotationDegrees: Int = 0, topK: Int = 3): Classification =
        classify(Orientation.ofRotation(rotationDegrees), topK) { BitmapPixels(bitmap) }

    /**
     * The [topK] likeliest classes of a camera frame in YUV_420_888, of which its crop rectangle is seen.
     *
     * The frame has to stay open until this returns, also when it is cancelled. With CameraX: `proxy.image` and
     * `proxy.imageInfo.rotationDegrees`.
     */
    suspend fun classify(frame: Image, rotationDegrees: Int, topK: Int = 3): Classification =
        classify(Orientation.ofRotation(rotationDegrees), topK) { frame.pixels() }

    /**
     * The [topK] likeliest classes of a photo of the gallery or of a file, turned upright by its EXIF data.
     *
     * Throws [java.io.IOException] where it cannot be read or decoded.
     */
    suspend fun classify(context: Context, photo: Uri, topK: Int = 3): Classification {
        val decoded = withContext(Dispatchers.IO) { decodePhoto(context.contentResolver, photo) }
        return classify(decoded.orientation, topK) { BitmapPixels(decoded.bitmap) }
    }

    /** The [topK] likeliest classes of any picture. */
    suspend fun classify(source: PixelSource, orientation: Orientation, topK: Int = 3): Classification =
        classify(orientation, topK) { source }

    private suspend fun classify(orientation: Orientation, topK: Int, source: () -> PixelSource): Classification =
        withContext(dispatcher) {
            mutex.withLock {
                check(!closed.get()) { "${spec.name} is closed" }
                val start = System.nanoTime()
                val input = preprocessor.prepare(source(), orientation)
                val prepared = System.nanoTime()
                val scores = model.run(input)
                val done = System.nanoTime()
                Classification(rank(scores, labels, topK), prepared - start, done - prepared)
            }
        }

    /**
     * Frees the model, at once or when the photo in work is done; returns without waiting. Calls that still wait for
     * their turn throw [IllegalStateException].
     */
    override fun close() {
        if (closed.getAndSet(true)) return
        CoroutineScope(dispatcher).launch {
            mutex.withLock { model.close() }
        }
    }
}
