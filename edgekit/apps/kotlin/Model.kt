package edgekit.app

/** What a model takes, in the layout of its [InputSpec]. */
sealed interface ModelInput {
    /** For [ElementType.FLOAT32]. */
    class Floats(val values: FloatArray) : ModelInput

    /** For [ElementType.INT8] and, bit for bit, [ElementType.UINT8]. */
    class Bytes(val values: ByteArray) : ModelInput
}

/** A loaded model. Not thread-safe: one call at a time, [close] included. [Classifier] sees to that. */
interface Model : AutoCloseable {
    /** What it takes and gives. */
    val spec: ModelSpec

    /** Class scores of one image; integers come back as the numbers they stand for. Blocks until they are there. */
    fun run(input: ModelInput): FloatArray

    /** Frees the runtime's memory; the model cannot run afterwards. */
    override fun close()
}

/** The numbers that a model's integers stand for. */
internal fun dequantized(bytes: ByteArray, output: OutputSpec): FloatArray {
    val scale = output.quantization?.scale ?: 1f
    val zeroPoint = output.quantization?.zeroPoint ?: 0
    val mask = if (output.type == ElementType.UINT8) 0xff else -1
    return FloatArray(bytes.size) { ((bytes[it].toInt() and mask) - zeroPoint) * scale }
}
