package edgekit.demo.model

import android.content.Context
import edgekit.app.Classification
import edgekit.demo.R

/** How many classes the screens show. */
const val SHOWN_CLASSES: Int = 3

/** The classes of [answer] with their probabilities, one a line. */
fun topLines(context: Context, answer: Classification): String =
    answer.predictions.take(SHOWN_CLASSES).joinToString("\n") {
        context.getString(R.string.prediction, 100 * it.probability, it.label)
    }
