// Written from AndroidX' documentation: its packages are in no registry that the tests reach.
@file:Suppress("UNUSED_PARAMETER", "unused")

package androidx.exifinterface.media

import java.io.InputStream

class ExifInterface(inputStream: InputStream) {
    fun getAttributeInt(tag: String, defaultValue: Int): Int = TODO()

    companion object {
        const val TAG_ORIENTATION: String = "Orientation"
    }
}
