package edgekit.demo.live

import android.Manifest
import android.app.Activity
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Bundle
import android.provider.Settings
import android.view.TextureView
import android.view.View
import android.widget.Button
import android.widget.TextView
import edgekit.app.Classification
import edgekit.demo.R
import edgekit.demo.measure.BenchmarkActivity
import edgekit.demo.model.ArtifactPicker
import edgekit.demo.model.Catalog
import edgekit.demo.model.Notes
import edgekit.demo.model.Recognizer
import edgekit.demo.model.Topic
import edgekit.demo.model.readCatalog
import edgekit.demo.model.topLines
import edgekit.demo.photo.PhotoActivity

/** What the camera sees, its three likeliest classes, and how long they take. */
class LiveActivity : Activity(), LiveListener {
    private lateinit var catalog: Catalog
    private lateinit var latency: TextView
    private lateinit var predictions: TextView
    private lateinit var permission: Button
    private lateinit var notes: Notes
    private lateinit var camera: LiveCamera
    private val latencies = LatencyWindow()
    private var recognizer: Recognizer? = null
    private var hasAsked = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        hasAsked = savedInstanceState?.getBoolean(HAS_ASKED) ?: false
        setContentView(R.layout.live)
        latency = findViewById(R.id.latency) as TextView
        predictions = findViewById(R.id.predictions) as TextView
        permission = findViewById(R.id.permission) as Button
        notes = Notes(findViewById(R.id.message) as TextView)
        camera = LiveCamera(findViewById(R.id.preview) as TextureView, this)
        permission.setOnClickListener { askAgain() }
        val photo: View = findViewById(R.id.photo)
        photo.setOnClickListener { startActivity(Intent(this, PhotoActivity::class.java)) }
        val benchmark: View = findViewById(R.id.benchmark)
        benchmark.setOnClickListener { startActivity(Intent(this, BenchmarkActivity::class.java)) }
        catalog = readCatalog(assets)
        notes.say(Topic.ASSETS, catalog.problems(this))
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putBoolean(HAS_ASKED, hasAsked)
    }

    override fun onResume() {
        super.onResume()
        val asked = Recognizer(this)
        recognizer = asked
        ArtifactPicker(findViewById(R.id.live), catalog) { runtime, artifact ->
            predictions.text = getString(R.string.loading, "${runtime.title} ${artifact.title}")
            latency.text = ""
            asked.use(runtime, artifact) { problem ->
                latencies.clear()
                predictions.text = ""
                notes.say(Topic.MODEL, problem?.let { getString(R.string.model_failed, artifact.folder, it) }.orEmpty())
            }
        }
        if (isAllowed()) startCamera(asked) else ask()
    }

    override fun onPause() {
        camera.stop()
        recognizer?.close()
        recognizer = null
        super.onPause()
    }

    private fun startCamera(asked: Recognizer) {
        permission.visibility = View.GONE
        camera.start(asked)
    }

    override fun onAnswer(answer: Classification) {
        notes.say(Topic.PICTURE, "")
        predictions.text = topLines(this, answer)
        latencies.add(answer.prepareNanos, answer.runNanos)
        val figures = latencies.latency() ?: return
        latency.text = getString(
            R.string.latency,
            figures.preprocess.p50Ms,
            figures.preprocess.p90Ms,
            figures.inference.p50Ms,
            figures.inference.p90Ms,
            figures.frames,
        )
    }

    override fun onFrameProblem(problem: String) = notes.say(Topic.PICTURE, getString(R.string.frame_failed, problem))

    override fun onCamera(problem: Int) = notes.say(Topic.CAMERA, if (problem == 0) "" else getString(problem))

    private fun isAllowed(): Boolean =
        checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED

    /** Asks once of its own accord, then only when the button is pressed: a refusal pauses and resumes the screen. */
    private fun ask() {
        if (hasAsked) return refused()
        hasAsked = true
        requestPermissions(arrayOf(Manifest.permission.CAMERA), 0)
    }

    private fun refused() {
        onCamera(R.string.no_permission)
        permission.setText(if (canAsk()) R.string.allow_camera else R.string.open_settings)
        permission.visibility = View.VISIBLE
    }

    /** Whether Android would still ask; once it is refused for good, only the settings change that. */
    private fun canAsk(): Boolean = shouldShowRequestPermissionRationale(Manifest.permission.CAMERA)

    private fun askAgain() {
        if (canAsk()) {
            requestPermissions(arrayOf(Manifest.permission.CAMERA), 0)
        } else {
            val settings = Uri.fromParts("package", packageName, null)
            startActivity(Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, settings))
        }
    }

    override fun onRequestPermissionsResult(requestCode: Int, permissions: Array<String>, grantResults: IntArray) {
        super.onRequestPermissionsResult(requestCode, permissions, grantResults)
        if (!isAllowed()) refused()
    }

    private companion object {
        const val HAS_ASKED = "hasAsked"
    }
}
