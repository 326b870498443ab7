package edgekit.demo.artifact

import edgekit.app.ModelSpec

/** What the manifest says of the delegate: so many ops inside, the others by kind. */
data class DelegationShare(
    val backend: String,
    val delegated: Int,
    val partitions: Int,
    val fallback: Map<String, Int>,
)

/**
 * An exported model in the app's assets, by its `edgekit.json`.
 *
 * [folder] is its path in the assets, [sha256] the model file's, and [sizeBytes] counts that file alone.
 */
data class ArtifactManifest(
    val folder: String,
    val name: String,
    val target: String,
    val precision: String,
    val sha256: String,
    val sizeBytes: Long,
    val spec: ModelSpec,
    val delegation: DelegationShare,
) {
    /** Its name among the artifacts of one runtime. */
    val title: String get() = "$name · $precision"

    /** Whether it computes in integers, which are compared less strictly than floats. */
    val isInteger: Boolean get() = precision != "fp32" && precision != "fp16"
}

/** A manifest that this app cannot use; the message says why, and what to do. */
class ManifestException(message: String, cause: Throwable? = null) : Exception(message, cause)
