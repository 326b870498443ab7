package edgekit.demo.measure

import android.content.Context
import edgekit.app.GoldenSample
import edgekit.app.Model
import edgekit.app.checkGolden
import edgekit.app.readGolden
import edgekit.demo.artifact.ArtifactManifest
import edgekit.demo.device.phoneFacts
import edgekit.demo.device.phoneState
import edgekit.demo.model.DemoRuntime
import java.io.File
import java.io.IOException
import java.util.Date

private const val GOLDEN = "golden.safetensors"

/** What a benchmark has measured, and where it is written. */
class BenchmarkOutcome(val file: File, val measured: List<Measured>, val warnings: List<String>)

/** A benchmark of [choices] that writes edgekit's result into [folder]. */
class BenchmarkRun(
    private val context: Context,
    private val choices: List<Pair<DemoRuntime, ArtifactManifest>>,
    private val plan: BenchmarkPlan,
    private val folder: File,
) {
    /** Blocks for some seconds for each model. Throws [BenchmarkStopped], [IOException] or what a runtime throws. */
    fun run(onStep: (done: Int, of: Int) -> Unit, isStopped: () -> Boolean): BenchmarkOutcome {
        val began = Date()
        val candidates = choices.map { (runtime, artifact) -> AssetCandidate(context, runtime, artifact, plan.threads) }
        try {
            candidates.forEach { it.unpack() }
            val before = phoneState(context)
            val measurements = Benchmark(plan, System::nanoTime, onStep, isStopped).measure(candidates)
            val after = phoneState(context)
            val measured = candidates.zip(measurements) { candidate, measurement ->
                val problems = candidate.problems()
                Measured(candidate.artifact, candidate.runtime.fullName, "golden sample 0", measurement, problems)
            }
            val warnings = degraded(before, after)
            val surroundings = Surroundings(phoneFacts(), before, after, warnings)
            val json = profileJson(measured, plan, surroundings, measuredAt(began))
            return BenchmarkOutcome(write(json.toString(2), resultName(began)), measured, warnings)
        } finally {
            candidates.forEach { it.close() }
        }
    }

    /** All of the text under its name, or nothing. */
    private fun write(text: String, name: String): File {
        val unfinished = File(folder, "$name.part")
        val file = File(folder, name)
        unfinished.writeText(text)
        if (!unfinished.renameTo(file)) throw IOException("$file cannot be written")
        return file
    }
}

/** A model of the assets, which runs on its first golden sample. */
private class AssetCandidate(
    private val context: Context,
    val runtime: DemoRuntime,
    val artifact: ArtifactManifest,
    private val threads: Int,
) : Candidate {
    private val samples: List<GoldenSample> =
        readGolden(context.assets.open("${artifact.folder}/$GOLDEN").use { it.readBytes() }, artifact.spec)
    private var model: Model? = null

    /** Has the model copied out of the app, where its runtime wants a file: done once, and no part of loading. */
    fun unpack() = runtime.open(context, artifact, threads).close()

    override fun load() {
        model = runtime.open(context, artifact, threads)
    }

    override fun infer() {
        checkNotNull(model).run(samples.first().input)
    }

    /** In words, how the loaded model computes something else than it was exported with. */
    fun problems(): List<String> {
        val loaded = checkNotNull(model)
        val scores = samples.map { loaded.run(it.input) }
        return checkGolden(samples, scores, artifact.spec.minSqnrDb, integers = artifact.isInteger).failures
            .map { "wrong: it does not compute its golden outputs on this phone: $it" }
    }

    override fun close() {
        model?.close()
        model = null
    }
}
