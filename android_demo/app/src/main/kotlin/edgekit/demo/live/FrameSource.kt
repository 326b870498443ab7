package edgekit.demo.live

import android.graphics.ImageFormat
import android.media.Image
import android.media.ImageReader
import android.view.Surface
import edgekit.app.Classification
import edgekit.demo.model.Recognizer

/** One frame in work, and the newest. */
private const val IMAGES = 2

/**
 * The frames of a camera, each asked of the [recognizer] as it comes.
 *
 * What comes while one is in work is dropped but for the newest: there is no queue that an answer could be late from.
 * Callbacks come on the main thread.
 */
class FrameSource(
    private val camera: CameraChoice,
    private val recognizer: Recognizer,
    private val onAnswer: (Classification) -> Unit,
    private val onProblem: (String) -> Unit,
) : AutoCloseable {
    private val reader =
        ImageReader.newInstance(camera.frame.width, camera.frame.height, ImageFormat.YUV_420_888, IMAGES)
    private var isClosed = false // of the recognizer's thread

    /** How far the display is turned from the device's natural orientation. */
    @Volatile
    var displayDegrees: Int = 0

    /** Where the camera has to draw. */
    val surface: Surface = reader.surface

    init {
        reader.setOnImageAvailableListener({ classifyNewest() }, recognizer.handler)
    }

    private fun classifyNewest() {
        if (isClosed) return
        val frame = reader.acquireLatestImage() ?: return // it came with the one before
        try {
            classify(frame)
        } finally {
            frame.close()
        }
    }

    private fun classify(frame: Image) {
        val degrees = uprightDegrees(camera.sensorDegrees, displayDegrees, camera.facingFront)
        recognizer.ask({ it.classify(frame, degrees) }) { answer, problem ->
            if (answer != null) onAnswer(answer)
            if (problem != null) onProblem(problem)
        }
    }

    /** Frees the frames once the one in work is answered; the camera has to be closed before. */
    override fun close() {
        recognizer.handler.post {
            isClosed = true
            reader.close()
        }
    }
}
