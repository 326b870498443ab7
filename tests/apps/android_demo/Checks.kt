package edgekit.demo.checks

import edgekit.app.Orientation
import edgekit.demo.artifact.ArtifactManifest
import edgekit.demo.artifact.ManifestException
import edgekit.demo.artifact.readManifest
import edgekit.demo.live.LatencyWindow
import edgekit.demo.live.PixelSize
import edgekit.demo.live.frameSize
import edgekit.demo.live.previewFit
import edgekit.demo.live.uprightDegrees
import edgekit.demo.measure.Benchmark
import edgekit.demo.measure.BenchmarkPlan
import edgekit.demo.measure.BenchmarkStopped
import edgekit.demo.measure.Candidate
import edgekit.demo.measure.Measured
import edgekit.demo.measure.Summary
import edgekit.demo.measure.Surroundings
import edgekit.demo.measure.degraded
import edgekit.demo.measure.measuredAt
import edgekit.demo.measure.profileJson
import edgekit.demo.measure.resultName
import java.util.Date
import org.json.JSONArray
import org.json.JSONObject

/** Runs the check named by the first argument on the JSON of standard input; its answer is JSON, too. */
fun main(arguments: Array<String>) {
    val asked = JSONObject(System.`in`.readBytes().toString(Charsets.UTF_8))
    val answer = when (arguments.single()) {
        "manifest" -> manifest(asked)
        "statistics" -> statistics(asked)
        "geometry" -> geometry(asked)
        "benchmark" -> benchmark(asked)
        else -> error("no such check")
    }
    println(answer)
}

private fun manifest(asked: JSONObject): JSONObject = try {
    values(readManifest(asked.getString("folder"), asked.getString("text")))
} catch (error: ManifestException) {
    JSONObject().put("error", error.message)
}

private fun values(manifest: ArtifactManifest): JSONObject = JSONObject()
    .put("folder", manifest.folder)
    .put("name", manifest.name)
    .put("target", manifest.target)
    .put("precision", manifest.precision)
    .put("sha256", manifest.sha256)
    .put("size_bytes", manifest.sizeBytes)
    .put("asset", manifest.spec.asset)
    .put("labels", manifest.spec.labelsAsset)
    .put("shape", JSONArray(manifest.spec.input.shape.toList()))
    .put("layout", manifest.spec.input.layout.name)
    .put("dtype", manifest.spec.input.type.name.lowercase())
    .put("quantization", manifest.spec.input.quantization?.let { JSONArray(listOf(it.scale, it.zeroPoint)) })
    .put("classes", manifest.spec.output.classes)
    .put("resize", manifest.spec.preprocess.resize)
    .put("crop", JSONArray(listOf(manifest.spec.preprocess.cropHeight, manifest.spec.preprocess.cropWidth)))
    .put("interpolation", manifest.spec.preprocess.interpolation.name.lowercase())
    .put("mean", JSONArray(manifest.spec.preprocess.mean))
    .put("std", JSONArray(manifest.spec.preprocess.std))
    .put("scale", manifest.spec.preprocess.scale)
    .put("channel_order", manifest.spec.preprocess.channelOrder.name)
    .put("min_sqnr_db", manifest.spec.minSqnrDb)
    .put("backend", manifest.delegation.backend)
    .put("delegated", manifest.delegation.delegated)
    .put("partitions", manifest.delegation.partitions)
    .put("fallback", JSONObject(manifest.delegation.fallback))

private fun statistics(asked: JSONObject): JSONObject {
    val us = doubles(asked.getJSONArray("us"))
    val figures = Summary.ofMicroseconds(us)
    val window = LatencyWindow(asked.getInt("window"))
    us.forEach { window.add((it * 1e3).toLong(), (it * 2e3).toLong()) }
    val live = checkNotNull(window.latency())
    window.clear()
    check(window.latency() == null) { "frames of another model are left" }
    return JSONObject()
        .put("mean_ms", figures.meanMs)
        .put("std_ms", figures.stdMs)
        .put("cv", figures.cv)
        .put("min_ms", figures.minMs)
        .put("p50_ms", figures.p50Ms)
        .put("p90_ms", figures.p90Ms)
        .put("p95_ms", figures.p95Ms)
        .put("p99_ms", figures.p99Ms)
        .put("max_ms", figures.maxMs)
        .put("stable", figures.isStable)
        .put("frames", live.frames)
        .put("live", JSONArray(listOf(live.preprocess.p50Ms, live.preprocess.p90Ms)))
        .put("inference", JSONArray(listOf(live.inference.p50Ms, live.inference.p90Ms)))
}

private fun geometry(asked: JSONObject): JSONObject {
    val turns = rows(asked.getJSONArray("turns")).map { row ->
        val degrees = uprightDegrees(row.getInt(0), row.getInt(1), row.getBoolean(2))
        JSONArray(listOf(degrees, Orientation.ofRotation(degrees).exif))
    }
    val fits = rows(asked.getJSONArray("fits")).map { row ->
        val view = PixelSize(row.getInt(0), row.getInt(1))
        val fit = previewFit(view, PixelSize(row.getInt(2), row.getInt(3)), row.getInt(4), row.getInt(5))
        JSONArray(listOf(fit.scaleX, fit.scaleY, fit.degrees, fit.zoom))
    }
    val sizes = rows(asked.getJSONArray("sizes")).map { row ->
        val size = frameSize(rows(row).map { PixelSize(it.getInt(0), it.getInt(1)) }, asked.getInt("shorter"))
        size?.let { JSONArray(listOf(it.width, it.height)) } ?: JSONObject.NULL
    }
    return JSONObject().put("turns", JSONArray(turns)).put("fits", JSONArray(fits)).put("sizes", JSONArray(sizes))
}

/** A phone whose time passes only while a model works. */
private class FakePhone(asked: JSONObject) {
    val manifests = rows(asked.getJSONArray("artifacts"), JSONArray::getJSONObject)
        .map { readManifest(it.getString("folder"), it.getString("text")) }
    val log = ArrayList<String>()
    var now = 0L
    private val us = rows(asked.getJSONArray("artifacts"), JSONArray::getJSONObject).map { doubles(it.getJSONArray("us")) }

    fun candidates(): List<Candidate> = us.mapIndexed { n, latencies ->
        object : Candidate {
            private var runs = 0

            override fun load() {
                log.add("load $n")
                now += 7_000_000
            }

            override fun infer() {
                log.add("infer $n")
                now += (latencies[runs++ % latencies.size] * 1e3).toLong()
            }

            override fun close() = Unit
        }
    }
}

private fun benchmark(asked: JSONObject): JSONObject {
    val phone = FakePhone(asked)
    val plan = BenchmarkPlan(threads = asked.getInt("threads"))
    val steps = ArrayList<List<Int>>()
    val stopAfter = asked.optInt("stop_after", Int.MAX_VALUE)
    val loop = Benchmark(plan, phone::now, { done, of -> steps.add(listOf(done, of)) }, { phone.log.size >= stopAfter })
    val measurements = try {
        loop.measure(phone.candidates())
    } catch (error: BenchmarkStopped) {
        return JSONObject().put("stopped", phone.log.size)
    }
    val before = strings(asked.getJSONObject("before"))
    val after = strings(asked.getJSONObject("after"))
    val surroundings = Surroundings(strings(asked.getJSONObject("device")), before, after, degraded(before, after))
    val measured = phone.manifests.zip(measurements) { manifest, measurement ->
        Measured(manifest, "a runtime 1.0", "golden sample 0", measurement)
    }
    val began = Date(asked.getLong("began_ms"))
    return JSONObject()
        .put("log", JSONArray(phone.log))
        .put("steps", JSONArray(steps.map { JSONArray(it) }))
        .put("name", resultName(began))
        .put("profile", profileJson(measured, plan, surroundings, measuredAt(began)))
}

private fun rows(values: JSONArray): List<JSONArray> = rows(values, JSONArray::getJSONArray)

private fun <T> rows(values: JSONArray, get: (JSONArray, Int) -> T): List<T> = List(values.length()) { get(values, it) }

private fun doubles(values: JSONArray): DoubleArray = DoubleArray(values.length()) { values.getDouble(it) }

private fun strings(values: JSONObject): Map<String, String> =
    values.keys().asSequence().associateWith { values.getString(it) }
