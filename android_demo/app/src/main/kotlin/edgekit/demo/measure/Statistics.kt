package edgekit.demo.measure

import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.sqrt

/**
 * The [percent]th percentile of [sorted] (ascending, at least one value), linearly interpolated between its neighbours:
 * numpy's default, and what `edgekit profile` reports.
 */
fun percentile(sorted: DoubleArray, percent: Double): Double {
    require(sorted.isNotEmpty()) { "no value has no percentile" }
    val place = (sorted.size - 1) * percent / 100
    val below = sorted[floor(place).toInt()]
    val above = sorted[ceil(place).toInt()]
    return below + (above - below) * (place - floor(place))
}

/** The usual figures of latencies, in milliseconds but for [cv] = [stdMs] / [meanMs]. */
class Summary private constructor(
    val meanMs: Double,
    val stdMs: Double,
    val minMs: Double,
    val p50Ms: Double,
    val p90Ms: Double,
    val p95Ms: Double,
    val p99Ms: Double,
    val maxMs: Double,
) {
    val cv: Double get() = if (meanMs == 0.0) 0.0 else stdMs / meanMs

    /** Whether the figures would come out the same again; the bounds are those of `edgekit profile`. */
    val isStable: Boolean get() = cv <= MAX_CV && p99Ms <= MAX_TAIL * p50Ms

    companion object {
        private const val MAX_CV = 0.10
        private const val MAX_TAIL = 1.5

        /** Of at least one latency in microseconds; the deviation is the sample's (n - 1). */
        fun ofMicroseconds(us: DoubleArray): Summary {
            val ms = DoubleArray(us.size) { us[it] / 1e3 }
            ms.sort()
            val mean = ms.average()
            val squares = ms.sumOf { (it - mean) * (it - mean) }
            return Summary(
                meanMs = mean,
                stdMs = if (ms.size > 1) sqrt(squares / (ms.size - 1)) else 0.0,
                minMs = ms.first(),
                p50Ms = percentile(ms, 50.0),
                p90Ms = percentile(ms, 90.0),
                p95Ms = percentile(ms, 95.0),
                p99Ms = percentile(ms, 99.0),
                maxMs = ms.last(),
            )
        }
    }
}
