package edgekit.demo.measure

import android.content.ContentProvider
import android.content.ContentValues
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/** Lets an app that a result is shared with read that result, and nothing else: an intent is too small to hold it. */
class ResultProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun getType(uri: Uri): String = RESULT_TYPE

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (mode != "r") throw FileNotFoundException("$uri can only be read")
        return ParcelFileDescriptor.open(file(uri), ParcelFileDescriptor.MODE_READ_ONLY)
    }

    override fun query(
        uri: Uri,
        projection: Array<String>?,
        selection: String?,
        selectionArgs: Array<String>?,
        sortOrder: String?,
    ): Cursor {
        val file = file(uri)
        val columns = projection ?: arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)
        val values = columns.map { column ->
            when (column) {
                OpenableColumns.DISPLAY_NAME -> file.name
                OpenableColumns.SIZE -> file.length()
                else -> null
            }
        }
        return MatrixCursor(columns, 1).apply { addRow(values) }
    }

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun delete(uri: Uri, selection: String?, selectionArgs: Array<String>?): Int = 0

    override fun update(uri: Uri, values: ContentValues?, selection: String?, selectionArgs: Array<String>?): Int = 0

    /** The result that a link names; no path leads out of the results' folder. */
    private fun file(uri: Uri): File {
        val folder = context?.getExternalFilesDir(null)
        val name = uri.lastPathSegment.orEmpty()
        val file = File(folder, name)
        if (folder == null || !isResultName(name) || !file.isFile) throw FileNotFoundException("there is no $uri")
        return file
    }

    companion object {
        /** The type of results. */
        const val RESULT_TYPE: String = "application/json"

        /** The link to a result, for an app with the package [packageName]. */
        fun link(packageName: String, result: File): Uri =
            Uri.Builder().scheme("content").authority("$packageName.results").appendPath(result.name).build()
    }
}
