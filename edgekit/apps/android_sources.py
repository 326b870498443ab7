"""The Kotlin sources of a module: the library's with the module's package, and what is this model's alone."""

from collections.abc import Mapping
from importlib.resources import files as package_files

import numpy as np

from edgekit.apps.android_runtimes import RUNTIMES
from edgekit.apps.model import AppModel
from edgekit.apps.naming import comment, kotlin_string
from edgekit.errors import BadInput
from edgekit.types import TensorSpec

LIBRARY_PACKAGE = "edgekit.app"
MAIN = (
    "AssetFiles.kt", "Classifier.kt", "Labels.kt", "Model.kt", "ModelSpec.kt", "Photos.kt", "Pixels.kt",
    "Preprocessing.kt", "Ranking.kt", "Resampling.kt", "YuvPixels.kt",
)  # fmt: skip
TEST = ("Golden.kt",)
_TYPES = {"float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def library_source(name: str, package: str) -> str:
    """A file of the Kotlin library, in `package`."""
    text = (package_files("edgekit.apps") / "kotlin" / name).read_text(encoding="utf-8")
    return text.replace(f"package {LIBRARY_PACKAGE}\n", f"package {package}\n", 1)


def main_sources(model: AppModel, package: str) -> Mapping[str, str]:
    """The files of src/main by name. Raises `BadInput` for what the Kotlin sources do not prepare."""
    runtime = RUNTIMES[model.target].model
    names = [n for n in (*MAIN, f"{runtime}.kt") if n != "AssetFiles.kt" or model.target != "tflite"]
    return {
        **{name: library_source(name, package) for name in names},
        "ModelConstants.kt": _constants(model, package),
        f"{model.classifier}.kt": _classifier(model, package),
    }


def test_sources(model: AppModel, package: str) -> Mapping[str, str]:
    """The files of src/androidTest by name."""
    return {**{name: library_source(name, package) for name in TEST}, "GoldenTest.kt": _golden_test(model, package)}


def _constants(model: AppModel, package: str) -> str:
    p, (channels, height, width) = model.preprocess, _image(model)
    labels = kotlin_string(f"{model.resource}/labels.txt") if model.artifact.manifest.labels else "null"
    means, stds = (", ".join(map(_float, values)) for values in (p.mean, p.std))
    return f"""package {package}

/** {comment(model.artifact.manifest.name)}, as it was exported: edgekit.json in numbers that Kotlin reads. */
val MODEL_SPEC = ModelSpec(
    name = {kotlin_string(model.artifact.manifest.name)},
    asset = {kotlin_string(f"{model.resource}/{model.artifact.model_path.name}")},
    labelsAsset = {labels},
    sha256 = {kotlin_string(_sha256(model))},
    input = InputSpec(
        width = {width},
        height = {height},
        channels = {channels},
        layout = Layout.{model.input.layout},
        type = {_type(model.input)},
        quantization = {_quantization(model.input)},
    ),
    output = OutputSpec(
        classes = {model.classes},
        type = {_type(model.output)},
        quantization = {_quantization(model.output)},
    ),
    preprocess = Preprocess(
        resize = {p.resize},
        cropWidth = {p.crop[1]},
        cropHeight = {p.crop[0]},
        interpolation = Interpolation.{p.interpolation.upper()},
        mean = listOf({means}),
        std = listOf({stds}),
        scale = {_float(p.scale)},
        channelOrder = ChannelOrder.{p.channel_order},
    ),
    minSqnrDb = {float(model.min_sqnr_db)!r},
)
"""


def _classifier(model: AppModel, package: str) -> str:
    runtime = RUNTIMES[model.target]
    return f"""package {package}

import android.content.Context
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** Classifies photos with {comment(model.artifact.manifest.name)} ({runtime.title}); see [Classifier]. */
class {model.classifier} private constructor(model: Model, labels: List<String>) : Classifier(model, labels) {{
    companion object {{
        /** As many threads as big cores help on most phones. */
        const val DEFAULT_THREADS: Int = 4

        /**
         * Loads the model, on a thread for files; close it when done.
         *
         * Throws [java.io.IOException] or the runtime's own exception where the model cannot be loaded.
         */
        suspend fun open(context: Context, threads: Int = DEFAULT_THREADS): {model.classifier} {{
            var opened: {model.classifier}? = null
            try {{
                return withContext(Dispatchers.IO) {{
                    val labels = readLabels(context, MODEL_SPEC)
                    {model.classifier}({runtime.model}(context, MODEL_SPEC, threads), labels).also {{ opened = it }}
                }}
            }} catch (cancelled: CancellationException) {{
                opened?.close() // loaded, but nobody waits for it any more
                throw cancelled
            }}
        }}
    }}
}}
"""


def _golden_test(model: AppModel, package: str) -> str:
    integers = str(model.is_of_integers).lower()
    return f"""package {package}

import android.util.Log
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** Does this device compute what was proven when the model was exported? */
@RunWith(AndroidJUnit4::class)
class GoldenTest {{
    private val instrumentation = InstrumentationRegistry.getInstrumentation()

    @Test
    fun outputsAreAsNearToTheGoldenOnesAsAtExport() {{
        val file = instrumentation.context.assets.open({kotlin_string(f"{model.resource}/golden.safetensors")})
        val samples = readGolden(file.use {{ it.readBytes() }}, MODEL_SPEC)
        val threads = {model.classifier}.DEFAULT_THREADS
        val scores = {RUNTIMES[model.target].model}(instrumentation.targetContext, MODEL_SPEC, threads).use {{ model ->
            samples.map {{ model.run(it.input) }}
        }}
        val result = checkGolden(samples, scores, MODEL_SPEC.minSqnrDb, integers = {integers})
        Log.i("GoldenTest", "${{MODEL_SPEC.name}}: SQNR ${{result.sqnrDb}} dB, same top-1 ${{result.top1}}")
        assertTrue(result.failures.joinToString(), result.passed)
    }}

    @Test
    fun everyClassHasALabel() {{
        assertEquals(MODEL_SPEC.output.classes, readLabels(instrumentation.targetContext, MODEL_SPEC).size)
    }}
}}
"""


def _image(model: AppModel) -> tuple[int, int, int]:
    """(channels, height, width) of the input; raises `BadInput` where the preprocessing does not give that."""
    shape, p = model.input.shape, model.preprocess
    channels, height, width = shape[1:] if model.input.layout == "NCHW" else (shape[3], shape[1], shape[2])
    what = ""
    if model.input.layout not in ("NCHW", "NHWC"):
        what = f"its input has no image's layout ({model.input.layout!r})"
    elif (height, width) != tuple(p.crop) or channels != len(p.mean):
        what = f"its input {shape} is not what its preprocessing gives ({len(p.mean)} x {p.crop[0]} x {p.crop[1]})"
    elif p.interpolation not in _INTERPOLATIONS:
        what = f"its interpolation {p.interpolation!r} is none of {', '.join(_INTERPOLATIONS)}"
    if what:
        raise BadInput(
            f"{model.artifact.path} cannot be prepared for in an app: {what}", "Export it again; see `edgekit inspect`."
        )
    return channels, height, width


def _type(spec: TensorSpec) -> str:
    if spec.dtype not in _TYPES:
        raise BadInput(
            f"an app cannot give or read {spec.name} as {spec.dtype}: {', '.join(_TYPES)} are possible",
            "Export the model with float inputs and outputs (fp16 and int8 compute inside).",
        )
    return f"ElementType.{_TYPES[spec.dtype]}"


def _quantization(spec: TensorSpec) -> str:
    q = spec.quantization
    return f"Quantization({_float(q['scale'])}, {int(q['zero_point'])})" if q else "null"


def _float(value: float) -> str:
    """A Kotlin literal of the float32 that Python computes with."""
    return f"{float(str(np.float32(value)))!r}f"


def _sha256(model: AppModel) -> str:
    return model.artifact.manifest.files[model.artifact.model_path.name].sha256
