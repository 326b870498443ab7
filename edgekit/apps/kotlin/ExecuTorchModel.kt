package edgekit.app

import android.content.Context
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/**
 * A `.pte` model, on the backend that it was exported for (XNNPACK).
 *
 * ExecuTorch maps a file, to which the asset is copied on first use. Throws [RuntimeException] where it is no model
 * that this version runs.
 */
class ExecuTorchModel(context: Context, override val spec: ModelSpec, threads: Int) : Model {
    private val module: Module =
        Module.load(assetFile(context, spec.asset, spec.sha256).path, Module.LOAD_MODE_MMAP, threads)
    private val floats: FloatBuffer? =
        if (spec.input.type == ElementType.FLOAT32) Tensor.allocateFloatBuffer(spec.input.size) else null
    private val bytes: ByteBuffer? =
        if (spec.input.type != ElementType.FLOAT32) Tensor.allocateByteBuffer(spec.input.size) else null

    init {
        module.loadMethod("forward") // here rather than in the first call
    }

    override fun run(input: ModelInput): FloatArray {
        val scores = module.forward(EValue.from(tensor(input)))[0].toTensor()
        return when (spec.output.type) {
            ElementType.FLOAT32 -> scores.dataAsFloatArray
            ElementType.INT8 -> dequantized(scores.dataAsByteArray, spec.output)
            ElementType.UINT8 -> dequantized(scores.dataAsUnsignedByteArray, spec.output)
        }
    }

    /** The input in memory that native code sees, without another copy. */
    private fun tensor(input: ModelInput): Tensor = when (input) {
        is ModelInput.Floats -> {
            val buffer = checkNotNull(floats) { "${spec.name} takes ${spec.input.type}" }
            buffer.clear()
            buffer.put(input.values)
            buffer.rewind()
            Tensor.fromBlob(buffer, spec.input.shape)
        }
        is ModelInput.Bytes -> {
            val buffer = checkNotNull(bytes) { "${spec.name} takes ${spec.input.type}" }
            buffer.clear()
            buffer.put(input.values)
            buffer.rewind()
            if (spec.input.type == ElementType.INT8) Tensor.fromBlob(buffer, spec.input.shape)
            else Tensor.fromBlobUnsigned(buffer, spec.input.shape)
        }
    }

    override fun close() = module.destroy()
}
