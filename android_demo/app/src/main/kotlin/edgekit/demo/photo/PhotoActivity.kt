package edgekit.demo.photo

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.Matrix
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.widget.ImageView
import android.widget.TextView
import edgekit.app.BitmapPixels
import edgekit.app.Classification
import edgekit.app.DecodedPhoto
import edgekit.app.decodePhoto
import edgekit.demo.R
import edgekit.demo.model.ArtifactPicker
import edgekit.demo.model.Notes
import edgekit.demo.model.Recognizer
import edgekit.demo.model.Topic
import edgekit.demo.model.attempt
import edgekit.demo.model.readCatalog
import edgekit.demo.model.topLines

/** A photo of the gallery and its three likeliest classes. */
class PhotoActivity : Activity() {
    private lateinit var picture: ImageView
    private lateinit var predictions: TextView
    private lateinit var notes: Notes
    private var recognizer: Recognizer? = null
    private var photo: Uri? = null
    private var hasModel = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.photo)
        picture = findViewById(R.id.picture) as ImageView
        predictions = findViewById(R.id.predictions) as TextView
        notes = Notes(findViewById(R.id.message) as TextView)
        val choose: View = findViewById(R.id.choose)
        choose.setOnClickListener { choose() }
        photo = savedInstanceState?.getString(PHOTO)?.let(Uri::parse)
        if (savedInstanceState == null) choose()
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putString(PHOTO, photo?.toString())
    }

    override fun onStart() {
        super.onStart()
        recognizer = Recognizer(this)
        val catalog = readCatalog(assets)
        notes.say(Topic.ASSETS, catalog.problems(this))
        ArtifactPicker(findViewById(R.id.root), catalog) { runtime, artifact ->
            predictions.text = getString(R.string.loading, "${runtime.title} ${artifact.title}")
            recognizer?.use(runtime, artifact) { problem ->
                predictions.text = ""
                notes.say(Topic.MODEL, problem?.let { getString(R.string.model_failed, artifact.folder, it) }.orEmpty())
                hasModel = problem == null
                classify()
            }
        }
    }

    override fun onStop() {
        recognizer?.close()
        recognizer = null
        hasModel = false
        super.onStop()
    }

    private fun choose() {
        val documents = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        try {
            startActivityForResult(documents, 0)
        } catch (error: ActivityNotFoundException) {
            notes.say(Topic.PICTURE, getString(R.string.no_viewer))
        }
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        photo = data?.data ?: return
        classify()
    }

    /** Reads, classifies and shows the photo, if there is one and a model. */
    private fun classify() {
        val chosen = photo ?: return
        val asked = recognizer ?: return
        if (!hasModel) return
        val resolver = applicationContext.contentResolver
        asked.handler.post {
            val problem = attempt {
                val read = decodePhoto(resolver, chosen)
                asked.ask({ it.classify(BitmapPixels(read.bitmap), read.orientation) }, ::show)
                val shown = upright(read)
                asked.tell { picture.setImageBitmap(shown) }
            }
            if (problem != null) asked.tell { show(null, problem) }
        }
    }

    private fun show(answer: Classification?, problem: String?) {
        notes.say(Topic.PICTURE, problem?.let { getString(R.string.photo_failed, it) }.orEmpty())
        if (answer == null) return
        val took = getString(R.string.photo_latency, answer.prepareNanos / 1e6, answer.runNanos / 1e6)
        predictions.text = "${topLines(this, answer)}\n$took"
    }

    private companion object {
        const val PHOTO = "photo"
    }
}

/** No view shows more. */
private const val SHOWN_PIXELS = 1024f

/** A copy to be shown: upright, no larger than a view can draw, and without alpha as the model saw it. */
private fun upright(photo: DecodedPhoto): Bitmap {
    val bitmap = photo.bitmap
    bitmap.setHasAlpha(false) // a bitmap whose colours are not multiplied by it cannot be drawn
    val scale = minOf(1f, SHOWN_PIXELS / maxOf(bitmap.width, bitmap.height))
    val matrix = Matrix().apply { setScale(scale, scale) }
    val orientation = photo.orientation
    // The stored picture is flipped first, then its axes are swapped.
    matrix.postScale(if (orientation.flipsX) -1f else 1f, if (orientation.flipsY) -1f else 1f)
    if (orientation.swapsAxes) matrix.postConcat(Matrix().apply { setValues(TRANSPOSED) })
    return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, matrix, true)
}

private val TRANSPOSED = floatArrayOf(0f, 1f, 0f, 1f, 0f, 0f, 0f, 0f, 1f)
