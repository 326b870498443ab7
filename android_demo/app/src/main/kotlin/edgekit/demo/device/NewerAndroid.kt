package edgekit.demo.device

import android.annotation.TargetApi
import android.os.Build
import android.os.PowerManager

/** What only newer versions of Android tell; null on older ones. */
object NewerAndroid {
    private const val API_29 = 29
    private const val API_31 = 31

    /** 0 (none) to 6 (shutdown), from Android 10 on. */
    @TargetApi(API_29)
    fun thermalStatus(power: PowerManager): Int? =
        if (Build.VERSION.SDK_INT >= API_29) power.currentThermalStatus else null

    /** Maker and name of the chip, from Android 12 on. */
    @TargetApi(API_31)
    fun chip(): String? =
        if (Build.VERSION.SDK_INT >= API_31) known(Build.SOC_MANUFACTURER, Build.SOC_MODEL) else null

    private fun known(vararg parts: String): String? =
        parts.filter { it.isNotEmpty() && it != Build.UNKNOWN }.joinToString(" ").ifEmpty { null }
}
