package edgekit.demo.device

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import java.io.File
import java.io.IOException

/** How many cores the phone has. */
val cores: Int get() = Runtime.getRuntime().availableProcessors()

/** What stands beside a latency, by the names that `edgekit profile` uses; what the phone does not tell is left out. */
fun phoneFacts(): Map<String, String> {
    val model = Build.MODEL
    val maker = Build.MANUFACTURER
    return present(
        "kind" to "android app",
        "model" to if (model.startsWith(maker, ignoreCase = true)) model else "$maker $model",
        "system" to "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
        "cpu" to (NewerAndroid.chip() ?: Build.BOARD),
        "machine" to Build.SUPPORTED_ABIS.firstOrNull(),
        "cores" to cores.toString(),
        "max_khz" to perCore("cpuinfo_max_freq"),
        "fingerprint" to Build.FINGERPRINT,
    )
}

/** Heat, battery and clocks now, by the names that `edgekit profile` uses. */
fun phoneState(context: Context): Map<String, String> {
    val power = context.getSystemService(PowerManager::class.java)
    val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
    val level = battery?.extra(BatteryManager.EXTRA_LEVEL)
    val scale = battery?.extra(BatteryManager.EXTRA_SCALE)
    val tenths = battery?.extra(BatteryManager.EXTRA_TEMPERATURE)
    val status = battery?.extra(BatteryManager.EXTRA_STATUS)
    return present(
        "thermal_status" to NewerAndroid.thermalStatus(power)?.toString(),
        "battery_percent" to if (level != null && scale != null && scale > 0) "${100 * level / scale}" else null,
        "battery_celsius" to tenths?.let { "${it / 10}.${Math.abs(it % 10)}" },
        "charging" to status?.let { if (it in CHARGING) "yes" else "no" },
        "low_power" to if (power.isPowerSaveMode) "1" else "0",
        "khz" to perCore("scaling_cur_freq"),
    )
}

private val CHARGING = setOf(BatteryManager.BATTERY_STATUS_CHARGING, BatteryManager.BATTERY_STATUS_FULL)

private fun Intent.extra(name: String): Int? = getIntExtra(name, Int.MIN_VALUE).takeIf { it != Int.MIN_VALUE }

/** A clock of each core; null where the phone does not let apps read it. */
private fun perCore(name: String): String? = try {
    (0 until cores).joinToString(" ") { File("/sys/devices/system/cpu/cpu$it/cpufreq/$name").readText().trim() }
} catch (error: IOException) {
    null
}

private fun present(vararg facts: Pair<String, String?>): Map<String, String> =
    facts.mapNotNull { (name, value) -> value?.trim()?.ifEmpty { null }?.let { name to it } }.toMap()
