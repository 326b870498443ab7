package edgekit.demo.live

import android.graphics.ImageFormat
import android.graphics.SurfaceTexture
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraManager

/** The shorter side of frames: models take less, and converting more would take longer than the model. */
private const val SHORTER_SIDE = 480

/** A camera, how its sensor sits in the device, and the size of its frames. */
class CameraChoice(val id: String, val sensorDegrees: Int, val facingFront: Boolean, val frame: PixelSize)

/** The camera on the back, else any that gives frames; null where there is none. */
fun chooseCamera(manager: CameraManager): CameraChoice? {
    val choices = manager.cameraIdList.mapNotNull { choice(it, manager.getCameraCharacteristics(it)) }
    return choices.firstOrNull { !it.facingFront } ?: choices.firstOrNull()
}

private fun choice(id: String, facts: CameraCharacteristics): CameraChoice? {
    val map = facts.get(CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP) ?: return null
    val frames = map.getOutputSizes(ImageFormat.YUV_420_888).orEmpty()
    val previews = map.getOutputSizes(SurfaceTexture::class.java).orEmpty().toSet()
    val sizes = frames.filter { it in previews }.map { PixelSize(it.width, it.height) }
    return CameraChoice(
        id = id,
        sensorDegrees = facts.get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0,
        facingFront = facts.get(CameraCharacteristics.LENS_FACING) == CameraCharacteristics.LENS_FACING_FRONT,
        frame = frameSize(sizes, SHORTER_SIDE) ?: return null,
    )
}
