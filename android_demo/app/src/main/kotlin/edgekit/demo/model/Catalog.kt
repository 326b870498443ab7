package edgekit.demo.model

import android.content.Context
import android.content.res.AssetManager
import edgekit.demo.R
import edgekit.demo.artifact.ArtifactManifest
import edgekit.demo.artifact.MANIFEST
import edgekit.demo.artifact.ManifestException
import edgekit.demo.artifact.readManifest

/** The artifacts that this app can run, by runtime, and in words why it cannot run the [others]. */
class Catalog(val artifacts: Map<DemoRuntime, List<ArtifactManifest>>, private val others: List<String>) {
    /** All artifacts with their runtimes. */
    val all: List<Pair<DemoRuntime, ArtifactManifest>>
        get() = artifacts.flatMap { (runtime, some) -> some.map { runtime to it } }

    /** In words, what is wrong with the assets; "" where nothing is. */
    fun problems(context: Context): String {
        val missing = if (artifacts.isEmpty()) listOf(context.getString(R.string.no_artifacts)) else emptyList()
        return (missing + others).joinToString("\n")
    }
}

/** Looks through the folders of the assets. Blocks for some milliseconds. */
fun readCatalog(assets: AssetManager): Catalog {
    val found = ArrayList<Pair<DemoRuntime, ArtifactManifest>>()
    val others = ArrayList<String>()
    for (folder in assets.list("").orEmpty()) {
        if (MANIFEST !in assets.list(folder).orEmpty()) continue
        try {
            val text = assets.open("$folder/$MANIFEST").use { it.readBytes() }.toString(Charsets.UTF_8)
            val manifest = readManifest(folder, text)
            val runtime = DemoRuntime.of(manifest.target)
            if (runtime == null) others.add("$folder is for ${manifest.target}, which this app does not run.")
            else found.add(runtime to manifest)
        } catch (error: ManifestException) {
            others.add(error.message.orEmpty())
        }
    }
    val artifacts = found.groupBy({ it.first }, { it.second }).mapValues { (_, some) -> some.sortedBy { it.title } }
    return Catalog(artifacts.toSortedMap(), others)
}
