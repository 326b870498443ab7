package edgekit.demo.live

import android.annotation.SuppressLint
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.hardware.camera2.CaptureRequest
import android.os.Handler
import android.os.HandlerThread
import android.view.Surface
import edgekit.demo.R

/**
 * A camera that draws on some surfaces until it is closed.
 *
 * All of it happens on a thread of its own, so that no call of the camera meets another; [onProblem] is called there
 * with the string that says what happened.
 */
class CameraFeed(
    private val manager: CameraManager,
    private val camera: CameraChoice,
    private val surfaces: List<Surface>,
    private val onProblem: (Int) -> Unit,
) : AutoCloseable {
    private val thread = HandlerThread("camera").apply { start() }
    private val handler = Handler(thread.looper)
    private var device: CameraDevice? = null
    private var isOpening = false
    private var isClosed = false

    /** Opens the camera; the permission has to be granted. */
    fun open() {
        handler.post { guarded { openDevice() } }
    }

    @SuppressLint("MissingPermission") // asked for by the activity
    private fun openDevice() {
        manager.openCamera(camera.id, DeviceCallback(), handler)
        isOpening = true
    }

    private fun startSession(opened: CameraDevice) =
        opened.createCaptureSession(surfaces, SessionCallback(opened), handler)

    private fun repeat(opened: CameraDevice, session: CameraCaptureSession) {
        val request = opened.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
        surfaces.forEach(request::addTarget)
        request.set(CaptureRequest.CONTROL_AF_MODE, CaptureRequest.CONTROL_AF_MODE_CONTINUOUS_PICTURE)
        session.setRepeatingRequest(request.build(), null, handler)
    }

    /** Gives the camera back; when this returns other apps can have it, unless it is very slow to open. */
    override fun close() {
        handler.post {
            isClosed = true
            device?.close()
            device = null
            // A camera that opens after its thread has gone would stay open for ever.
            if (!isOpening) thread.quit()
        }
        thread.join(MOST_WAIT_MS)
    }

    private fun guarded(work: () -> Unit) {
        if (isClosed) return
        try {
            work()
        } catch (error: CameraAccessException) {
            onProblem(inWords(error))
        } catch (error: SecurityException) {
            onProblem(R.string.no_permission)
        } catch (error: IllegalStateException) {
            onProblem(R.string.camera_lost) // closed by the system between two calls
        }
    }

    private fun inWords(error: CameraAccessException): Int = when (error.reason) {
        CameraAccessException.CAMERA_IN_USE -> R.string.camera_in_use
        CameraAccessException.MAX_CAMERAS_IN_USE -> R.string.camera_too_many
        CameraAccessException.CAMERA_DISABLED -> R.string.camera_disabled
        CameraAccessException.CAMERA_DISCONNECTED -> R.string.camera_lost
        else -> R.string.camera_broken
    }

    private inner class DeviceCallback : CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) {
            if (hasEnded(camera)) return
            device = camera
            guarded { startSession(camera) }
        }

        override fun onDisconnected(camera: CameraDevice) {
            if (!hasEnded(camera)) lost(camera, R.string.camera_lost)
        }

        override fun onError(camera: CameraDevice, error: Int) {
            if (hasEnded(camera)) return
            val problem = when (error) {
                ERROR_CAMERA_IN_USE -> R.string.camera_in_use
                ERROR_MAX_CAMERAS_IN_USE -> R.string.camera_too_many
                ERROR_CAMERA_DISABLED -> R.string.camera_disabled
                else -> R.string.camera_broken
            }
            lost(camera, problem)
        }

        /** Whether this feed was closed while the camera opened: then it is closed now. */
        private fun hasEnded(camera: CameraDevice): Boolean {
            isOpening = false
            if (!isClosed) return false
            camera.close()
            thread.quit()
            return true
        }

        private fun lost(camera: CameraDevice, problem: Int) {
            camera.close()
            device = null
            onProblem(problem)
        }
    }

    private inner class SessionCallback(private val opened: CameraDevice) : CameraCaptureSession.StateCallback() {
        override fun onConfigured(session: CameraCaptureSession) = guarded { repeat(opened, session) }

        override fun onConfigureFailed(session: CameraCaptureSession) = onProblem(R.string.camera_broken)
    }

    private companion object {
        const val MOST_WAIT_MS = 2000L
    }
}
