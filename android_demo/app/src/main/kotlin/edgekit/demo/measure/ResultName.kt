package edgekit.demo.measure

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

private val NAME = Regex("edgekit-\\d{8}-\\d{6}\\.json")

/** The file of a result that was begun at [began]. */
fun resultName(began: Date): String = "edgekit-${utc("yyyyMMdd-HHmmss", began)}.json"

/** Whether [name] is that of a result. */
fun isResultName(name: String): Boolean = NAME.matches(name)

/** [began] as results quote it: ISO 8601, UTC, to the second. */
fun measuredAt(began: Date): String = utc("yyyy-MM-dd'T'HH:mm:ss", began) + "+00:00"

private fun utc(pattern: String, date: Date): String =
    SimpleDateFormat(pattern, Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }.format(date)
