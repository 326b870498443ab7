package edgekit.demo.model

import android.content.Context
import android.os.Handler
import android.os.HandlerThread
import android.os.Looper
import edgekit.app.Classification
import edgekit.app.Classifier
import edgekit.app.readLabels
import edgekit.demo.artifact.ArtifactManifest
import kotlinx.coroutines.runBlocking

/** How many threads live pictures are classified with: more make phones hot sooner than fast. */
private const val THREADS = 2

/**
 * A thread with the model in use: it is loaded, asked and closed there, so that none of them meets another.
 *
 * Callbacks come on the main thread, and none after [close].
 */
class Recognizer(context: Context) : AutoCloseable {
    private val context = context.applicationContext
    private val thread = HandlerThread("recognizer").apply { start() }
    private val main = Handler(Looper.getMainLooper())
    private var classifier: Classifier? = null

    @Volatile
    private var isClosed = false

    /** For what has to come on the model's thread, such as the frames of a camera. */
    val handler: Handler = Handler(thread.looper)

    /** Replaces the model; then [onDone] hears null, or in words what went wrong. */
    fun use(runtime: DemoRuntime, artifact: ArtifactManifest, onDone: (String?) -> Unit) {
        handler.post {
            release()
            val problem = attempt { classifier = open(runtime, artifact) }
            tell { onDone(problem) }
        }
    }

    private fun open(runtime: DemoRuntime, artifact: ArtifactManifest): Classifier {
        val model = runtime.open(context, artifact, THREADS)
        try {
            return Classifier(model, readLabels(context, artifact.spec))
        } catch (error: Exception) {
            model.close() // what it holds is no memory that a garbage collector would free
            throw error
        }
    }

    /**
     * Asks the model, if there is one, on this thread, which has to be that of [handler]; blocks until it has answered.
     *
     * [onDone] hears the answer, or in words what went wrong.
     */
    fun ask(question: suspend (Classifier) -> Classification, onDone: (Classification?, String?) -> Unit) {
        val asked = classifier ?: return
        var answer: Classification? = null
        val problem = attempt { answer = runBlocking { question(asked) } }
        tell { onDone(answer, problem) }
    }

    /** Calls [callback] on the main thread, unless this is closed by then. */
    fun tell(callback: () -> Unit) {
        main.post { if (!isClosed) callback() }
    }

    /** Closes the model when the question in work is answered; returns at once. */
    override fun close() {
        isClosed = true
        handler.post(::release)
        thread.quitSafely()
    }

    private fun release() {
        classifier?.close()
        classifier = null
    }
}

/**
 * Runs [work]; in words what went wrong, or null.
 *
 * Runtimes throw exceptions of all kinds, and errors where a native library does not fit the phone.
 */
internal fun attempt(work: () -> Unit): String? = try {
    work()
    null
} catch (error: Exception) {
    error.inWords()
} catch (error: LinkageError) {
    error.inWords()
} catch (error: OutOfMemoryError) {
    error.inWords()
}

private fun Throwable.inWords(): String = when (this) {
    is OutOfMemoryError -> "the memory is full"
    is LinkageError -> "its native library does not fit this phone (${message ?: javaClass.simpleName})"
    else -> message ?: javaClass.simpleName
}
