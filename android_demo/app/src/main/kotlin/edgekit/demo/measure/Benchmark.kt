package edgekit.demo.measure

import kotlin.math.ceil

/** The least that is asked of a measurement: that of `edgekit profile`. */
data class BenchmarkPlan(
    val threads: Int,
    val warmupRuns: Int = 10,
    val warmupSecs: Double = 0.5,
    val numRuns: Int = 50,
    val minSecs: Double = 1.0,
    val rounds: Int = 20,
) {
    init {
        require(threads >= 1 && warmupRuns >= 1 && numRuns >= 1 && rounds >= 1) { "nothing would be measured" }
    }
}

/** A model under measurement; [close] is called once, also after an error. */
interface Candidate : AutoCloseable {
    /** Reads the model and makes it ready to run. */
    fun load()

    /** One inference on the same input each time. */
    fun infer()
}

/** What was measured of one candidate: [rounds] turns of equally many latencies in microseconds. */
class Measurement(val loadMs: Double, val firstMs: Double, val rounds: List<DoubleArray>) {
    val runsPerRound: Int get() = rounds.first().size

    /** All latencies in the order that they were taken. */
    fun samples(): DoubleArray {
        val all = DoubleArray(rounds.size * runsPerRound)
        rounds.forEachIndexed { n, round -> round.copyInto(all, n * runsPerRound) }
        return all
    }
}

/** The user asked to stop. */
class BenchmarkStopped : RuntimeException("the benchmark was stopped")

/**
 * Measures candidates in turns, A B C A B C, as `edgekit profile` does: what slows the phone for a while slows all.
 *
 * [clock] gives nanoseconds; [onStep] hears how many of how many steps are done; [isStopped] is asked between turns.
 */
class Benchmark(
    private val plan: BenchmarkPlan,
    private val clock: () -> Long,
    private val onStep: (done: Int, of: Int) -> Unit = { _, _ -> },
    private val isStopped: () -> Boolean = { false },
) {
    /** One measurement of each candidate, in order. Throws what a candidate throws, or [BenchmarkStopped]. */
    fun measure(candidates: List<Candidate>): List<Measurement> {
        val steps = candidates.size + plan.rounds
        val states = candidates.mapIndexed { n, candidate ->
            step(n, steps)
            loaded(candidate)
        }
        var rounds = 0
        while (!states.all { it.isDone(plan) }) {
            step(candidates.size + minOf(rounds, plan.rounds - 1), steps)
            states.forEach(::takeTurn)
            rounds++
        }
        onStep(steps, steps)
        return states.map { Measurement(it.loadMs, it.firstMs, it.turns) }
    }

    private fun step(done: Int, of: Int) {
        if (isStopped()) throw BenchmarkStopped()
        onStep(done, of)
    }

    private fun loaded(candidate: Candidate): State {
        val loadMs = nanoseconds(candidate::load) / 1e6
        val firstMs = nanoseconds(candidate::infer) / 1e6
        val warm = ArrayList<Double>()
        var warmUs = 0.0
        while (warm.size < plan.warmupRuns || warmUs < plan.warmupSecs * 1e6) {
            if (isStopped()) throw BenchmarkStopped()
            warm.add(microseconds(candidate))
            warmUs += warm.last()
        }
        val typical = percentile(warm.toDoubleArray().apply { sort() }, 50.0)
        val wanted = maxOf(plan.numRuns, ceil(plan.minSecs * 1e6 / typical).toInt())
        return State(candidate, loadMs, firstMs, wanted, runsPerTurn = maxOf(1, wanted / plan.rounds))
    }

    private fun takeTurn(state: State) {
        if (isStopped()) throw BenchmarkStopped()
        state.candidate.infer() // the caches were another's: not recorded
        state.turns.add(DoubleArray(state.runsPerTurn) { microseconds(state.candidate) })
    }

    private fun microseconds(candidate: Candidate): Double = nanoseconds(candidate::infer) / 1e3

    private inline fun nanoseconds(work: () -> Unit): Long {
        val start = clock()
        work()
        return maxOf(1, clock() - start) // no latency is zero, however coarse the clock
    }

    private class State(
        val candidate: Candidate,
        val loadMs: Double,
        val firstMs: Double,
        val wanted: Int,
        val runsPerTurn: Int,
    ) {
        val turns = ArrayList<DoubleArray>()

        fun isDone(plan: BenchmarkPlan): Boolean =
            turns.size * runsPerTurn >= wanted && turns.sumOf { it.sum() } >= plan.minSecs * 1e6
    }
}
