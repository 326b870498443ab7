package edgekit.demo.measure

private val THERMAL = listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
private const val MAX_BATTERY_CELSIUS = 37.0
private const val MIN_BATTERY_PERCENT = 20

/**
 * Why a phone in [state] would not show what it can do, each in words; empty where it would, or does not tell.
 *
 * The bounds are those of `edgekit profile`.
 */
fun unfit(state: Map<String, String>): List<String> {
    val reasons = ArrayList<String>()
    val status = state["thermal_status"]?.toIntOrNull() ?: 0
    if (status != 0) reasons.add("its thermal status is $status (${THERMAL.getOrElse(status) { "unknown" }})")
    val celsius = state["battery_celsius"]
    if ((celsius?.toDoubleOrNull() ?: 0.0) > MAX_BATTERY_CELSIUS) {
        reasons.add("its battery has $celsius °C (more than ${MAX_BATTERY_CELSIUS.toInt()})")
    }
    val percent = state["battery_percent"]?.toIntOrNull() ?: 100
    if (state["low_power"] == "1") {
        reasons.add("it saves power (battery saver is on): switch that off")
    } else if (percent < MIN_BATTERY_PERCENT && state["charging"] != "yes") {
        reasons.add("its battery is at $percent %: phones slow down when it is low")
    }
    return reasons
}

/** The warnings of a measurement between two states. */
fun degraded(before: Map<String, String>, after: Map<String, String>): List<String> {
    val first = unfit(before)
    return first.map { "degraded: $it" } + (unfit(after) - first.toSet()).map { "afterwards: $it" }
}
