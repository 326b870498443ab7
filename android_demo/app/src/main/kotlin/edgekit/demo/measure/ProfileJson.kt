package edgekit.demo.measure

import edgekit.demo.artifact.ArtifactManifest
import org.json.JSONArray
import org.json.JSONObject
import java.util.Locale

/** The name of the clock that latencies are taken with, as results quote it. */
const val CLOCK: String = "System.nanoTime"

/** A candidate's [measurement], what it was of and on which [input], and what is wrong with the model in words. */
class Measured(
    val artifact: ArtifactManifest,
    val runtime: String,
    val input: String,
    val measurement: Measurement,
    problems: List<String> = emptyList(),
) {
    val figures: Summary = Summary.ofMicroseconds(measurement.samples())

    /** In words, why not to trust the figures. */
    val warnings: List<String> = problems + if (figures.isStable) emptyList() else listOf(unstable(figures))
}

/** The phone, and how it was before and after; each by name, as `edgekit profile` names them. */
class Surroundings(
    val device: Map<String, String>,
    val before: Map<String, String>,
    val after: Map<String, String>,
    val warnings: List<String>,
)

/**
 * The measurements in the schema of `edgekit profile -o`, which `edgekit report` reads.
 *
 * [measuredAt] is when they began: ISO 8601, UTC, to the second. What an app cannot know, such as the memory of one
 * model alone, is null.
 */
fun profileJson(
    measured: List<Measured>,
    plan: BenchmarkPlan,
    surroundings: Surroundings,
    measuredAt: String,
): JSONObject = JSONObject()
    .put("schema", 1)
    .put("results", JSONArray(measured.map { result(it, plan, surroundings, measuredAt) }))
    .put("comparisons", JSONArray())

private fun result(
    measured: Measured,
    plan: BenchmarkPlan,
    surroundings: Surroundings,
    measuredAt: String,
): JSONObject {
    val artifact = measured.artifact
    val measurement = measured.measurement
    val samples = measurement.samples()
    val figures = measured.figures
    return JSONObject()
        .put("artifact", artifact.folder)
        .put("sha256", artifact.sha256)
        .put("name", artifact.name)
        .put("target", artifact.target)
        .put("precision", artifact.precision)
        .put("runtime", measured.runtime)
        .put("device", JSONObject(surroundings.device))
        .put("threads", plan.threads)
        .put("protocol", protocol(measured, plan))
        .put("load_ms", measurement.loadMs)
        .put("first_ms", measurement.firstMs)
        .put("latency_us", JSONArray(samples.toList()))
        .put("mean_ms", figures.meanMs)
        .put("std_ms", figures.stdMs)
        .put("cv", figures.cv)
        .put("min_ms", figures.minMs)
        .put("p50_ms", figures.p50Ms)
        .put("p90_ms", figures.p90Ms)
        .put("p95_ms", figures.p95Ms)
        .put("p99_ms", figures.p99Ms)
        .put("max_ms", figures.maxMs)
        .put("peak_memory_mib", JSONObject.NULL)
        .put("model_memory_mib", JSONObject.NULL)
        .put("size_bytes", artifact.sizeBytes)
        .put("runs", samples.size)
        .put("delegation", delegation(artifact))
        .put("state", state(surroundings))
        .put("warnings", JSONArray(measured.warnings + surroundings.warnings))
        .put("measured_at", measuredAt)
}

private fun protocol(measured: Measured, plan: BenchmarkPlan): JSONObject = JSONObject()
    .put("warmup_runs", plan.warmupRuns)
    .put("num_runs", plan.numRuns)
    .put("min_secs", plan.minSecs)
    .put("rounds", measured.measurement.rounds.size)
    .put("runs_per_round", measured.measurement.runsPerRound)
    .put("clock", CLOCK)
    .put("input", measured.input)
    .put("mode", "usual")

private fun delegation(artifact: ArtifactManifest): JSONObject = JSONObject()
    .put("backend", artifact.delegation.backend)
    .put("delegated", artifact.delegation.delegated)
    .put("partitions", artifact.delegation.partitions)
    .put("fallback", JSONObject(artifact.delegation.fallback))

private fun state(surroundings: Surroundings): JSONObject {
    val state = JSONObject()
    if (surroundings.before.isNotEmpty()) state.put("before", JSONObject(surroundings.before))
    if (surroundings.after.isNotEmpty()) state.put("after", JSONObject(surroundings.after))
    return state
}

private fun unstable(figures: Summary): String {
    val spread = "%.0f".format(Locale.ROOT, 100 * figures.cv)
    val tail = "%.1f".format(Locale.ROOT, figures.p99Ms / figures.p50Ms)
    return "unstable: the coefficient of variation is $spread%, p99 is $tail x p50: close other apps, let the phone " +
        "cool down, then measure again"
}
