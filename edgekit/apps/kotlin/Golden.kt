package edgekit.app

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Locale
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.pow
import kotlin.math.sqrt
import org.json.JSONException
import org.json.JSONObject

/** One golden input, in the model's layout, and the scores that should come out. */
class GoldenSample(val input: ModelInput, val scores: FloatArray)

/**
 * How near a device's scores are to golden ones: the signal-to-noise ratio in dB, the share of samples with the same
 * likeliest class, and what is wrong, if anything.
 */
data class GoldenResult(val sqnrDb: Double, val top1: Double, val failures: List<String>) {
    val passed: Boolean get() = failures.isEmpty()
}

/**
 * The samples of a `golden.safetensors` for a model.
 *
 * Throws [IllegalArgumentException] for a file that is damaged or was made for a model of other shapes.
 */
fun readGolden(file: ByteArray, spec: ModelSpec): List<GoldenSample> {
    val tensors = readSafetensors(file)
    val samples = generateSequence(0) { it + 1 }.takeWhile { "input.$it" in tensors }.map { n ->
        val input = tensors.getValue("input.$n")
        val output = requireNotNull(tensors["output.$n"]) { "no output.$n beside input.$n" }
        require(input.shape.contentEquals(spec.input.shape)) { "input.$n is not ${spec.input.shape.contentToString()}" }
        require(output.count == spec.output.classes) { "output.$n does not have ${spec.output.classes} scores" }
        GoldenSample(input.asInput(spec.input.type), output.asScores(spec.output))
    }.toList()
    require(samples.isNotEmpty()) { "no golden samples" }
    return samples
}

/**
 * Compares a device's [scores], one row for each of [samples], with the golden ones.
 *
 * Of a float model the worst sample has to reach [ModelSpec.minSqnrDb] and each has to agree in the likeliest class. Of
 * a model of [integers], where one step weighs much in a single sample, all samples together have to reach it, and a
 * class may be mistaken for one whose golden score is within the noise that the ratio allows.
 */
fun checkGolden(
    samples: List<GoldenSample>,
    scores: List<FloatArray>,
    minSqnrDb: Double,
    integers: Boolean,
): GoldenResult {
    val pairs = samples.map { it.scores }.zip(scores)
    val wrong = samples.indices.filter { n -> n >= scores.size || scores[n].size != samples[n].scores.size }
    if (wrong.isNotEmpty()) {
        return GoldenResult(Double.NEGATIVE_INFINITY, 0.0, listOf("samples $wrong have other numbers of scores"))
    }
    val noises = pairs.map { (golden, actual) -> Noise.of(golden, actual) }
    val sqnr = if (integers) noises.reduce(Noise::plus).sqnrDb else noises.minOf { it.sqnrDb }
    val same = pairs.count { (golden, actual) -> likeliest(golden) == likeliest(actual) }
    val close = if (integers) tolerance(pairs.map { it.first }, minSqnrDb) else 0.0
    val mistaken = pairs.count { (golden, actual) ->
        likeliest(golden) != likeliest(actual) && golden[likeliest(golden)] - golden[likeliest(actual)] > close
    }
    val failures = buildList {
        if (!(sqnr >= minSqnrDb)) add("SQNR %.1f dB is below %.1f dB".format(Locale.ROOT, sqnr, minSqnrDb))
        if (mistaken > if (integers) max(1, samples.size / 100) else 0) {
            add("$mistaken of ${samples.size} samples have another likeliest class")
        }
    }
    return GoldenResult(sqnr, same.toDouble() / pairs.size, failures)
}

private fun likeliest(scores: FloatArray): Int = topK(scores, 1).single()

/** Twice the noise that the floor allows: each of two scores may be off by as much. */
private fun tolerance(golden: List<FloatArray>, minSqnrDb: Double): Double {
    val power = golden.sumOf { row -> row.sumOf { it.toDouble() * it } } / golden.sumOf { it.size }
    return 2 * sqrt(power) * 10.0.pow(-minSqnrDb / 20)
}

/** Sums of squares: of what should be, and of what is off. */
private class Noise(val signal: Double, val noise: Double) {
    val sqnrDb: Double
        get() = when {
            !(signal + noise).isFinite() -> Double.NEGATIVE_INFINITY
            noise == 0.0 -> Double.POSITIVE_INFINITY
            else -> 10 * log10(signal / noise)
        }

    operator fun plus(other: Noise) = Noise(signal + other.signal, noise + other.noise)

    companion object {
        fun of(golden: FloatArray, actual: FloatArray): Noise {
            var signal = 0.0
            var noise = 0.0
            for (n in golden.indices) {
                val difference = actual[n].toDouble() - golden[n]
                signal += golden[n].toDouble() * golden[n]
                noise += difference * difference
            }
            return Noise(signal, noise)
        }
    }
}

/** A tensor of a safetensors file; [data] is exactly its bytes. */
internal class StoredTensor(val type: ElementType, val shape: LongArray, private val data: ByteBuffer) {
    val count: Int get() = shape.fold(1L) { product, side -> product * side }.toInt()

    fun asInput(expected: ElementType): ModelInput {
        require(type == expected) { "a golden input of $type for a model that takes $expected" }
        return if (type == ElementType.FLOAT32) ModelInput.Floats(floats()) else ModelInput.Bytes(bytes())
    }

    fun asScores(output: OutputSpec): FloatArray =
        if (type == ElementType.FLOAT32) floats() else dequantized(bytes(), output)

    private fun floats(): FloatArray =
        FloatArray(count).also { data.duplicate().order(data.order()).asFloatBuffer().get(it) }

    private fun bytes(): ByteArray = ByteArray(count).also { data.duplicate().get(it) }
}

private val TYPES = mapOf("F32" to ElementType.FLOAT32, "I8" to ElementType.INT8, "U8" to ElementType.UINT8)

/**
 * The tensors of a safetensors file by name: eight bytes of length, a JSON header of that length, then the data.
 *
 * Throws [IllegalArgumentException] where the header or an offset points beyond the file.
 */
internal fun readSafetensors(file: ByteArray): Map<String, StoredTensor> {
    require(file.size >= Long.SIZE_BYTES) { "${file.size} bytes are no safetensors file" }
    val whole = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN)
    val length = whole.getLong(0)
    require(length in 2..(file.size - Long.SIZE_BYTES).toLong()) { "a header of $length bytes, a file of ${file.size}" }
    val start = Long.SIZE_BYTES + length.toInt()
    return try {
        val header = JSONObject(String(file, Long.SIZE_BYTES, length.toInt(), Charsets.UTF_8))
        header.keys().asSequence().map { "$it" }.filter { it != "__metadata__" }
            .associateWith { stored(header.getJSONObject(it), whole, start) }
    } catch (error: JSONException) {
        throw IllegalArgumentException("the header is no JSON of tensors", error)
    }
}

private fun stored(entry: JSONObject, whole: ByteBuffer, start: Int): StoredTensor {
    val name = entry.getString("dtype")
    val type = requireNotNull(TYPES[name]) { "tensors of $name are not read here" }
    val sides = entry.getJSONArray("shape")
    val shape = LongArray(sides.length()) { sides.getLong(it) }
    require(shape.all { it in 0..Int.MAX_VALUE }) { "no shape: ${shape.contentToString()}" }
    val offsets = entry.getJSONArray("data_offsets")
    val begin = offsets.getLong(0)
    val end = offsets.getLong(1)
    val size = shape.fold((if (type == ElementType.FLOAT32) Float.SIZE_BYTES else 1).toDouble()) { a, b -> a * b }
    require(begin in 0..end && end <= whole.capacity() - start) { "data from $begin to $end is not in the file" }
    require(size == (end - begin).toDouble()) { "${end - begin} bytes for ${shape.contentToString()} of $name" }
    val data = whole.duplicate()
    data.position(start + begin.toInt())
    data.limit(start + end.toInt())
    return StoredTensor(type, shape, data.slice().order(ByteOrder.LITTLE_ENDIAN))
}
