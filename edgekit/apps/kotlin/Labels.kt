package edgekit.app

import android.content.Context

/** The class names of a model, or its classes' numbers where they have no names. Blocks. */
fun readLabels(context: Context, spec: ModelSpec): List<String> {
    val asset = spec.labelsAsset ?: return List(spec.output.classes) { "$it" }
    return parseLabels(context.assets.open(asset).use { it.readBytes() }.toString(Charsets.UTF_8))
}
