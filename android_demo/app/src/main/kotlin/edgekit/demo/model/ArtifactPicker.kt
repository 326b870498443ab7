package edgekit.demo.model

import android.content.Context
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Spinner
import edgekit.demo.R
import edgekit.demo.artifact.ArtifactManifest

/**
 * The two lists of `picker.xml`: a runtime, and a model of those that were exported for it.
 *
 * [onChoice] hears of the first choice at once, which is that of last time where it is still there, then of others.
 */
class ArtifactPicker(
    root: View,
    private val catalog: Catalog,
    private val onChoice: (DemoRuntime, ArtifactManifest) -> Unit,
) {
    private val context: Context = root.context
    private val runtimes = root.findViewById(R.id.runtimes) as Spinner
    private val models = root.findViewById(R.id.models) as Spinner
    private val preferences = context.getSharedPreferences("picker", Context.MODE_PRIVATE)
    private val shownRuntimes = catalog.artifacts.keys.toList()
    private var chosen: ArtifactManifest? = null

    init {
        val last = preferences.getString(LAST, null)
        val runtime = catalog.all.firstOrNull { it.second.folder == last }?.first
        runtimes.show(shownRuntimes.map { it.title }, shownRuntimes.indexOf(runtime), ::showModels)
    }

    private fun showModels(position: Int) {
        val runtime = shownRuntimes[position]
        val artifacts = catalog.artifacts.getValue(runtime)
        val wanted = chosen?.title
        val last = preferences.getString(LAST, null)
        // The same model on the other runtime is what users want to compare.
        val start = artifacts.indexOfFirst { if (wanted == null) it.folder == last else it.title == wanted }
        models.show(artifacts.map { it.title }, start) { choose(runtime, artifacts[it]) }
    }

    private fun choose(runtime: DemoRuntime, artifact: ArtifactManifest) {
        if (artifact == chosen) return
        chosen = artifact
        preferences.edit().putString(LAST, artifact.folder).apply()
        onChoice(runtime, artifact)
    }

    private companion object {
        const val LAST = "artifact"
    }
}

/**
 * Shows [items] with the one at [start], or the first, selected; [onSelected] hears of it at once, then of others.
 *
 * What a spinner calls of its own accord, and when, depends on its layout: that is not relied on.
 */
fun Spinner.show(items: List<String>, start: Int, onSelected: (Int) -> Unit) {
    var selected = maxOf(start, 0)
    val shown = ArrayAdapter(context, android.R.layout.simple_spinner_item, items)
    shown.setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item)
    onItemSelectedListener = null
    adapter = shown
    setSelection(selected, false)
    onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
        override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) {
            if (position == selected) return
            selected = position
            onSelected(position)
        }

        override fun onNothingSelected(parent: AdapterView<*>?) = Unit
    }
    if (items.isNotEmpty()) onSelected(selected)
}
