package edgekit.demo.live

import android.content.Context
import android.graphics.Matrix
import android.graphics.SurfaceTexture
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraManager
import android.hardware.display.DisplayManager
import android.view.Display
import android.view.Surface
import android.view.TextureView
import edgekit.app.Classification
import edgekit.demo.R
import edgekit.demo.model.Recognizer

/** What a live picture leads to; all of it comes on the main thread. */
interface LiveListener {
    /** A frame was classified. */
    fun onAnswer(answer: Classification)

    /** A frame could not be classified, for this reason. */
    fun onFrameProblem(problem: String)

    /** The camera runs (0), or does not, as this string says. */
    fun onCamera(problem: Int)
}

/**
 * A camera that draws on [preview], upright however the display is turned, and whose frames a recognizer is asked of.
 *
 * For the main thread. Between [start] and [stop] it waits for the preview to be laid out, then runs.
 */
class LiveCamera(private val preview: TextureView, private val listener: LiveListener) {
    private val context: Context = preview.context
    private val displays = context.getSystemService(DisplayManager::class.java)
    private var recognizer: Recognizer? = null
    private var running: Running? = null

    init {
        preview.surfaceTextureListener = PreviewListener()
    }

    /** Runs the camera, for which the permission has to be granted, until [stop]. */
    fun start(asked: Recognizer) {
        recognizer = asked
        displays.registerDisplayListener(turned, null)
        run()
    }

    /** Gives the camera back. The recognizer has to be closed after this. */
    fun stop() {
        displays.unregisterDisplayListener(turned)
        halt()
        recognizer = null
    }

    private fun run() {
        val asked = recognizer
        val texture = preview.surfaceTexture
        if (running != null || asked == null || texture == null || !preview.isAvailable) return
        val manager = context.getSystemService(CameraManager::class.java)
        val choice = try {
            chooseCamera(manager)
        } catch (error: CameraAccessException) {
            return listener.onCamera(R.string.camera_broken)
        }
        if (choice == null) return listener.onCamera(R.string.no_camera)
        listener.onCamera(0)
        texture.setDefaultBufferSize(choice.frame.width, choice.frame.height)
        val shown = Surface(texture)
        val frames = FrameSource(choice, asked, listener::onAnswer, listener::onFrameProblem)
        val feed = CameraFeed(manager, choice, listOf(shown, frames.surface)) { problem ->
            asked.tell { listener.onCamera(problem) }
        }
        running = Running(choice, shown, frames, feed)
        turn()
        feed.open()
    }

    private fun halt() {
        running?.close()
        running = null
    }

    /** Turns preview and frames as the display is turned. */
    private fun turn() {
        val now = running ?: return
        val degrees = displayDegrees()
        now.frames.displayDegrees = degrees
        val view = PixelSize(preview.width, preview.height)
        if (view.width == 0 || view.height == 0) return
        val fit = previewFit(view, now.choice.frame, now.choice.sensorDegrees, degrees)
        val x = view.width / 2f
        val y = view.height / 2f
        val matrix = Matrix()
        matrix.postScale(fit.scaleX, fit.scaleY, x, y)
        matrix.postRotate(fit.degrees, x, y)
        matrix.postScale(fit.zoom, fit.zoom, x, y)
        preview.setTransform(matrix)
    }

    private fun displayDegrees(): Int = when (displays.getDisplay(Display.DEFAULT_DISPLAY)?.rotation) {
        Surface.ROTATION_90 -> 90
        Surface.ROTATION_180 -> 180
        Surface.ROTATION_270 -> 270
        else -> 0
    }

    /** Half a turn changes no layout, so that no other callback tells of it. */
    private val turned = object : DisplayManager.DisplayListener {
        override fun onDisplayChanged(displayId: Int) = turn()

        override fun onDisplayAdded(displayId: Int) = Unit

        override fun onDisplayRemoved(displayId: Int) = Unit
    }

    private inner class PreviewListener : TextureView.SurfaceTextureListener {
        override fun onSurfaceTextureAvailable(surface: SurfaceTexture, width: Int, height: Int) = run()

        override fun onSurfaceTextureSizeChanged(surface: SurfaceTexture, width: Int, height: Int) = turn()

        override fun onSurfaceTextureDestroyed(surface: SurfaceTexture): Boolean {
            halt()
            return true
        }

        override fun onSurfaceTextureUpdated(surface: SurfaceTexture) = Unit
    }

    private class Running(
        val choice: CameraChoice,
        private val shown: Surface,
        val frames: FrameSource,
        private val feed: CameraFeed,
    ) : AutoCloseable {
        /** The camera first: what it draws on has to be there as long as it draws. */
        override fun close() {
            feed.close()
            frames.close()
            shown.release()
        }
    }
}
