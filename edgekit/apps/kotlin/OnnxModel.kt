package edgekit.app

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * An `.onnx` model on ONNX Runtime's CPU kernels.
 *
 * The session reads a file, to which the asset is copied on first use. Throws ONNX Runtime's `OrtException` where it is
 * no model that this version runs.
 */
class OnnxModel(context: Context, override val spec: ModelSpec, threads: Int) : Model {
    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = OrtSession.SessionOptions().use { options ->
        options.setIntraOpNumThreads(threads)
        environment.createSession(assetFile(context, spec.asset, spec.sha256).path, options)
    }
    private val name: String = session.inputNames.first()
    private val buffer: ByteBuffer = ByteBuffer
        .allocateDirect(spec.input.size * if (spec.input.type == ElementType.FLOAT32) Float.SIZE_BYTES else 1)
        .order(ByteOrder.nativeOrder())

    override fun run(input: ModelInput): FloatArray =
        tensor(input).use { image ->
            session.run(mapOf(name to image)).use { result ->
                val scores = result[0] as OnnxTensor
                when (spec.output.type) {
                    ElementType.FLOAT32 -> scores.floatBuffer.let { FloatArray(it.remaining()).apply(it::get) }
                    else -> dequantized(scores.byteBuffer.let { ByteArray(it.remaining()).apply(it::get) }, spec.output)
                }
            }
        }

    /** The input in memory that native code sees, without another copy. */
    private fun tensor(input: ModelInput): OnnxTensor {
        buffer.clear()
        return when (input) {
            is ModelInput.Floats -> {
                val floats = buffer.asFloatBuffer()
                floats.put(input.values)
                floats.rewind()
                OnnxTensor.createTensor(environment, floats, spec.input.shape)
            }
            is ModelInput.Bytes -> {
                buffer.put(input.values)
                buffer.rewind()
                val type = if (spec.input.type == ElementType.INT8) OnnxJavaType.INT8 else OnnxJavaType.UINT8
                OnnxTensor.createTensor(environment, buffer, spec.input.shape, type)
            }
        }
    }

    override fun close() = session.close()
}
