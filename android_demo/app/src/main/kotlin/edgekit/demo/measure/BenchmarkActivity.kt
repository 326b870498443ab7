package edgekit.demo.measure

import android.app.Activity
import android.content.ClipData
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.Spinner
import android.widget.TextView
import edgekit.demo.R
import edgekit.demo.device.cores
import edgekit.demo.model.Catalog
import edgekit.demo.model.attempt
import edgekit.demo.model.readCatalog
import edgekit.demo.model.show
import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean

/** Measures models in turns, and writes a result that `edgekit report` reads. */
class BenchmarkActivity : Activity() {
    private lateinit var catalog: Catalog
    private lateinit var list: ListView
    private lateinit var start: Button
    private lateinit var share: Button
    private lateinit var progress: ProgressBar
    private lateinit var message: TextView
    private val worker = Executors.newSingleThreadExecutor() // one at a time, also after one was stopped
    private var threads = 1
    private var stop: AtomicBoolean? = null
    private var result: File? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.benchmark)
        list = findViewById(R.id.artifacts) as ListView
        start = findViewById(R.id.start) as Button
        share = findViewById(R.id.share) as Button
        progress = findViewById(R.id.progress) as ProgressBar
        message = findViewById(R.id.message) as TextView
        catalog = readCatalog(assets)
        val names = catalog.all.map { (runtime, artifact) -> "${runtime.title} · ${artifact.title}" }
        list.adapter = ArrayAdapter(this, android.R.layout.simple_list_item_multiple_choice, names)
        val counts = generateSequence(1) { it * 2 }.takeWhile { it <= cores }.toList()
        (findViewById(R.id.threads) as Spinner).show(counts.map { "$it" }, 0) { threads = counts[it] }
        start.setOnClickListener { startOrStop() }
        share.setOnClickListener { result?.let(::share) }
        message.text = catalog.problems(this)
    }

    override fun onPause() {
        stop?.set(true)
        if (stop != null) message.setText(R.string.stopped_by_leaving)
        stop = null
        idle()
        super.onPause()
    }

    override fun onDestroy() {
        worker.shutdown()
        super.onDestroy()
    }

    private fun startOrStop() {
        val running = stop
        if (running == null) return startBenchmark()
        running.set(true)
        stop = null
        message.setText(R.string.stopped)
        idle()
    }

    private fun startBenchmark() {
        val choices = catalog.all.filterIndexed { n, _ -> list.isItemChecked(n) }
        if (choices.isEmpty()) return message.setText(R.string.choose_models)
        val folder = getExternalFilesDir(null) ?: return message.setText(R.string.no_storage)
        val stopped = AtomicBoolean()
        stop = stopped
        start.setText(R.string.stop)
        share.isEnabled = false
        progress.progress = 0
        progress.visibility = View.VISIBLE
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        val run = BenchmarkRun(applicationContext, choices, BenchmarkPlan(threads), folder)
        worker.execute { measure(run, stopped) }
    }

    /** On the benchmark's thread; what it says after it was stopped is of no interest any more. */
    private fun measure(run: BenchmarkRun, stopped: AtomicBoolean) {
        val tell = { callback: () -> Unit -> runOnUiThread { if (!stopped.get()) callback() } }
        var outcome: BenchmarkOutcome? = null
        val problem = attempt {
            outcome = run.run({ done, of -> tell { showStep(done, of) } }, stopped::get)
        }
        tell {
            stop = null
            idle()
            outcome?.let(::showOutcome)
            if (problem != null) message.text = getString(R.string.benchmark_failed, problem)
        }
    }

    private fun showStep(done: Int, of: Int) {
        progress.max = of
        progress.progress = done
        message.text = getString(R.string.measuring, done, of)
    }

    private fun showOutcome(outcome: BenchmarkOutcome) {
        result = outcome.file
        share.isEnabled = true
        val lines = outcome.measured.map(::line) + outcome.warnings +
            getString(R.string.written, outcome.file.path, outcome.file.name)
        message.text = lines.joinToString("\n\n")
    }

    private fun line(measured: Measured): String {
        val figures = measured.figures
        val line = getString(
            R.string.measured,
            measured.runtime,
            measured.artifact.title,
            figures.p50Ms,
            figures.p90Ms,
            figures.minMs,
            100 * figures.cv,
            measured.measurement.samples().size,
            measured.measurement.loadMs,
            measured.measurement.firstMs,
        )
        return (listOf(line) + measured.warnings).joinToString("\n    ")
    }

    private fun idle() {
        start.setText(R.string.start)
        share.isEnabled = result != null
        progress.visibility = View.INVISIBLE
        window.clearFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
    }

    private fun share(file: File) {
        val link = ResultProvider.link(packageName, file)
        val send = Intent(Intent.ACTION_SEND)
            .setType(ResultProvider.RESULT_TYPE)
            .putExtra(Intent.EXTRA_STREAM, link)
            .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        send.clipData = ClipData.newRawUri(file.name, link) // what the chooser passes the permission on with
        startActivity(Intent.createChooser(send, getString(R.string.share)))
    }
}
