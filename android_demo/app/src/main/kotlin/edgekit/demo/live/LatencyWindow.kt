package edgekit.demo.live

import edgekit.demo.measure.percentile

/** Median and 90th percentile in milliseconds. */
class Latency(val p50Ms: Double, val p90Ms: Double)

/** What the frames of the window took: to prepare, and to infer. */
class FrameLatency(val frames: Int, val preprocess: Latency, val inference: Latency)

/** The latencies of the last [capacity] frames; for one thread. */
class LatencyWindow(private val capacity: Int = 100) {
    private val preprocess = DoubleArray(capacity)
    private val inference = DoubleArray(capacity)
    private var frames = 0L

    /** Takes one frame's times, in nanoseconds. */
    fun add(preprocessNs: Long, inferenceNs: Long) {
        val slot = (frames++ % capacity).toInt()
        preprocess[slot] = preprocessNs / 1e6
        inference[slot] = inferenceNs / 1e6
    }

    /** Forgets all frames: those of another model say nothing. */
    fun clear() {
        frames = 0
    }

    /** The figures of at most [capacity] frames; null before the first. */
    fun latency(): FrameLatency? {
        val count = minOf(frames, capacity.toLong()).toInt()
        if (count == 0) return null
        return FrameLatency(count, figures(preprocess, count), figures(inference, count))
    }

    private fun figures(ms: DoubleArray, count: Int): Latency {
        val sorted = ms.copyOf(count)
        sorted.sort()
        return Latency(p50Ms = percentile(sorted, 50.0), p90Ms = percentile(sorted, 90.0))
    }
}
