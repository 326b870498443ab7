package edgekit.demo.artifact

import edgekit.app.ChannelOrder
import edgekit.app.ElementType
import edgekit.app.InputSpec
import edgekit.app.Interpolation
import edgekit.app.Layout
import edgekit.app.ModelSpec
import edgekit.app.OutputSpec
import edgekit.app.Preprocess
import edgekit.app.Quantization
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** The manifest's name in an artifact's folder. */
const val MANIFEST: String = "edgekit.json"

private const val SCHEMA = 1
private const val DEFAULT_MIN_SQNR_DB = 30.0

/**
 * Reads the [text] of the manifest in the assets' [folder].
 *
 * Throws [ManifestException] for what is damaged, of another schema, or no classifier of one photo at a time.
 */
fun readManifest(folder: String, text: String): ArtifactManifest = try {
    manifest(folder, JSONObject(text))
} catch (error: JSONException) {
    throw ManifestException("$folder/$MANIFEST is damaged (${error.message}): run make android-assets again", error)
} catch (error: IllegalArgumentException) {
    throw ManifestException("$folder is not for this app: ${error.message}", error)
}

private fun manifest(folder: String, json: JSONObject): ArtifactManifest {
    val schema = json.getInt("schema")
    require(schema == SCHEMA) { "its manifest has schema $schema, this app reads $SCHEMA" }
    val files = json.getJSONObject("files")
    val models = files.keys().asSequence().filter { it.startsWith("model.") }.toList()
    require(models.size == 1) { "its model is ${models.size} files; this app runs models of one" }
    val record = files.getJSONObject(models.single())
    val name = json.getString("name")
    val labels = json.getString("labels")
    return ArtifactManifest(
        folder = folder,
        name = name,
        target = json.getString("target"),
        precision = json.getString("precision"),
        sha256 = record.getString("sha256"),
        sizeBytes = record.getLong("bytes"),
        spec = ModelSpec(
            name = name,
            asset = inside(folder, models.single()),
            labelsAsset = if (labels.isEmpty()) null else inside(folder, labels),
            sha256 = record.getString("sha256"),
            input = input(single(json.getJSONArray("inputs"), "input")),
            output = output(single(json.getJSONArray("outputs"), "output")),
            preprocess = preprocess(json),
            minSqnrDb = minSqnrDb(json.getJSONArray("verification")),
        ),
        delegation = delegation(json.getJSONObject("delegation")),
    )
}

/** A file's path in the assets; only names of the folder itself are taken. */
private fun inside(folder: String, file: String): String {
    require('/' !in file && file != "..") { "its manifest names a file elsewhere: $file" }
    return "$folder/$file"
}

private fun single(specs: JSONArray, what: String): JSONObject {
    require(specs.length() == 1) { "it has ${specs.length()} ${what}s; this app runs models of one" }
    return specs.getJSONObject(0)
}

private fun input(json: JSONObject): InputSpec {
    val shape = shape(json)
    require(shape.size == 4) { "its input is no image: it has ${shape.size} axes" }
    require(shape[0] == 1) { "it takes ${shape[0]} photos at a time: export with --batch-size 1" }
    val layout = choice<Layout>(json.getString("layout"), "layout")
    val (channels, height, width) = when (layout) {
        Layout.NCHW -> listOf(shape[1], shape[2], shape[3])
        Layout.NHWC -> listOf(shape[3], shape[1], shape[2])
    }
    return InputSpec(width, height, channels, layout, elementType(json), quantization(json))
}

private fun output(json: JSONObject): OutputSpec {
    val shape = shape(json)
    require(shape.size == 2) { "its output is no row of class scores" }
    return OutputSpec(shape[1], elementType(json), quantization(json))
}

private fun shape(json: JSONObject): List<Int> = json.getJSONArray("shape").let { sizes ->
    List(sizes.length()) { sizes.getInt(it) }
}

private fun elementType(json: JSONObject): ElementType = choice(json.getString("dtype"), "type")

private fun quantization(json: JSONObject): Quantization? {
    if (json.isNull("quantization")) return null
    val values = json.getJSONObject("quantization")
    return Quantization(values.getDouble("scale").toFloat(), values.getInt("zero_point"))
}

private fun preprocess(json: JSONObject): Preprocess {
    require(!json.isNull("preprocess")) { "its manifest does not say how a photo becomes its input" }
    val values = json.getJSONObject("preprocess")
    val crop = values.getJSONArray("crop")
    return Preprocess(
        resize = values.getInt("resize"),
        cropWidth = crop.getInt(1),
        cropHeight = crop.getInt(0),
        interpolation = choice(values.getString("interpolation"), "interpolation"),
        mean = floats(values.getJSONArray("mean")),
        std = floats(values.getJSONArray("std")),
        scale = values.getDouble("scale").toFloat(),
        channelOrder = choice(values.getString("channel_order"), "channel order"),
    )
}

private fun floats(values: JSONArray): List<Float> = List(values.length()) { values.getDouble(it).toFloat() }

private fun minSqnrDb(verification: JSONArray): Double =
    if (verification.length() == 0) DEFAULT_MIN_SQNR_DB else verification.getJSONObject(0).getDouble("min_sqnr_db")

private fun delegation(json: JSONObject): DelegationShare {
    val ops = json.getJSONArray("fallback")
    val fallback = LinkedHashMap<String, Int>()
    for (n in 0 until ops.length()) {
        val op = ops.getJSONObject(n)
        // One kind may be refused for several reasons.
        fallback[op.getString("op")] = (fallback[op.getString("op")] ?: 0) + op.getInt("count")
    }
    return DelegationShare(json.getString("backend"), json.getInt("delegated"), json.getInt("partitions"), fallback)
}

private inline fun <reified T : Enum<T>> choice(name: String, what: String): T =
    requireNotNull(enumValues<T>().firstOrNull { it.name.equals(name, ignoreCase = true) }) {
        "its $what is \"$name\"; this app knows ${enumValues<T>().joinToString { it.name.lowercase() }}"
    }
