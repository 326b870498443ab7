package edgekit.app

import kotlin.math.exp

/** One class of a photo: [index] in the model's output, and its [probability] from 0 to 1. */
data class Prediction(val index: Int, val label: String, val probability: Float)

/** The scores as probabilities: they add up to 1 and keep their order. */
fun softmax(scores: FloatArray): FloatArray {
    val highest = scores.maxOrNull() ?: return FloatArray(0)
    val powers = DoubleArray(scores.size) { exp((scores[it] - highest).toDouble()) }
    val sum = powers.sum()
    return FloatArray(scores.size) { (powers[it] / sum).toFloat() }
}

/**
 * The indices of the [k] highest values, highest first; of equal ones the lower index first, what is no number last.
 */
fun topK(values: FloatArray, k: Int): IntArray {
    val count = k.coerceIn(0, values.size)
    val best = IntArray(count)
    var filled = 0
    for (index in values.indices) {
        var place = filled
        while (place > 0 && isHigher(values[index], values[best[place - 1]])) place--
        if (place == count) continue
        if (filled < count) filled++
        for (n in filled - 1 downTo place + 1) best[n] = best[n - 1]
        best[place] = index
    }
    return best
}

private fun isHigher(a: Float, b: Float): Boolean = a > b || (b.isNaN() && !a.isNaN())

/** The [k] likeliest classes, likeliest first; a class without a label is named by its number. */
fun rank(scores: FloatArray, labels: List<String>, k: Int): List<Prediction> {
    val probabilities = softmax(scores)
    return topK(scores, k).map { Prediction(it, labels.getOrElse(it) { n -> n.toString() }, probabilities[it]) }
}

/** The labels of a file that edgekit wrote: one a line, where only "\n" ends a line. */
fun parseLabels(text: String): List<String> = text.removeSuffix("\n").split('\n')
