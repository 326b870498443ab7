package edgekit.app

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/**
 * A `.tflite` model on the CPU (XNNPACK), by LiteRT's `CompiledModel`.
 *
 * The file is mapped from the APK, for which it has to be stored there uncompressed. Throws LiteRT's `LiteRtException`
 * where it is no model that this version runs.
 */
class LiteRtModel(context: Context, override val spec: ModelSpec, threads: Int) : Model {
    private val compiled = CompiledModel.create(
        context.assets,
        spec.asset,
        CompiledModel.Options(Accelerator.CPU).apply {
            cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
        },
    )
    private val inputs = compiled.createInputBuffers()
    private val outputs = compiled.createOutputBuffers()

    override fun run(input: ModelInput): FloatArray {
        when (input) {
            is ModelInput.Floats -> inputs[0].writeFloat(input.values)
            is ModelInput.Bytes -> inputs[0].writeInt8(input.values)
        }
        compiled.run(inputs, outputs)
        return when (spec.output.type) {
            ElementType.FLOAT32 -> outputs[0].readFloat()
            else -> dequantized(outputs[0].readInt8(), spec.output)
        }
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        compiled.close()
    }
}
