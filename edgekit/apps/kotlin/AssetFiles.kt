package edgekit.app

import android.content.Context
import java.io.File
import java.io.FileOutputStream
import java.io.IOException

/**
 * An asset as a file, for runtimes that open files only: copied on first use, and again when the app brings another.
 *
 * The copy is named by [sha256], lies outside of backups, and replaces older ones of the same asset. Throws
 * [IOException] where there is no such asset or no space.
 */
@Synchronized
internal fun assetFile(context: Context, asset: String, sha256: String): File {
    val folder = File(context.noBackupFilesDir, "edgekit/" + asset.replace('/', '_'))
    val file = File(folder, sha256)
    if (file.isFile) return file
    folder.mkdirs()
    // Written under another name first: a copy that was cut short must not pass for the model.
    val unfinished = File.createTempFile("copy", null, folder)
    try {
        FileOutputStream(unfinished).use { output ->
            context.assets.open(asset).use { it.copyTo(output) }
            output.fd.sync()
        }
        folder.listFiles { other -> other != unfinished }?.forEach { it.delete() }
        if (!unfinished.renameTo(file)) throw IOException("cannot write $file")
    } finally {
        unfinished.delete()
    }
    return file
}
