package edgekit.demo.model

import android.view.View
import android.widget.TextView

/** What a note is about: each is said until its cause is gone. */
enum class Topic { ASSETS, CAMERA, MODEL, PICTURE }

/** What a screen has to say, in [view], which is hidden where there is nothing. */
class Notes(private val view: TextView) {
    private val notes = sortedMapOf<Topic, String>()

    /** Says [text] about [topic] in place of what was said of it before; an empty one takes that back. */
    fun say(topic: Topic, text: String) {
        if (notes[topic].orEmpty() == text) return
        if (text.isEmpty()) notes.remove(topic) else notes[topic] = text
        view.text = notes.values.joinToString("\n")
        view.visibility = if (notes.isEmpty()) View.GONE else View.VISIBLE
    }
}
