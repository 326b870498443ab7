// Written from AndroidX Test's documentation.
@file:Suppress("UNUSED_PARAMETER", "unused")

package androidx.test.platform.app

class InstrumentationRegistry {
    companion object {
        @JvmStatic
        fun getInstrumentation(): android.app.Instrumentation = TODO()
    }
}
