package edgekit.demo.model

import android.content.Context
import edgekit.app.ExecuTorchModel
import edgekit.app.LiteRtModel
import edgekit.app.Model
import edgekit.app.ModelSpec
import edgekit.app.OnnxModel
import edgekit.demo.BuildConfig
import edgekit.demo.artifact.ArtifactManifest

/** A runtime that this app brings: the [target] that artifacts are exported for, and its [title] with its version. */
enum class DemoRuntime(
    val target: String,
    val title: String,
    val version: String,
    private val load: (Context, ModelSpec, Int) -> Model,
) {
    LITERT("tflite", "LiteRT", BuildConfig.LITERT_VERSION, ::LiteRtModel),
    EXECUTORCH("executorch", "ExecuTorch", BuildConfig.EXECUTORCH_VERSION, ::ExecuTorchModel),
    ONNX_RUNTIME("onnx", "ONNX Runtime", BuildConfig.ONNXRUNTIME_VERSION, ::OnnxModel);

    /** As results name it. */
    val fullName: String get() = "$title $version"

    /** The model of [artifact], on [threads] threads. Blocks; throws what the runtime throws. */
    fun open(context: Context, artifact: ArtifactManifest, threads: Int): Model = load(context, artifact.spec, threads)

    companion object {
        /** The runtime for a target; null where this app has none. */
        fun of(target: String): DemoRuntime? = entries.firstOrNull { it.target == target }
    }
}
