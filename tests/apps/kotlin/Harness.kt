package edgekit.harness

import edgekit.app.ChannelOrder
import edgekit.app.Classifier
import edgekit.app.ElementType
import edgekit.app.InputSpec
import edgekit.app.Interpolation
import edgekit.app.Layout
import edgekit.app.Model
import edgekit.app.ModelInput
import edgekit.app.ModelSpec
import edgekit.app.Orientation
import edgekit.app.OutputSpec
import edgekit.app.PixelSource
import edgekit.app.Pixels
import edgekit.app.Plane
import edgekit.app.Preprocess
import edgekit.app.Preprocessor
import edgekit.app.Quantization
import edgekit.app.YuvPixels
import edgekit.app.checkGolden
import edgekit.app.parseLabels
import edgekit.app.rank
import edgekit.app.readGolden
import edgekit.app.topK
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.atomic.AtomicInteger
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.json.JSONArray
import org.json.JSONObject

/** Does what each line of standard input asks for, a JSON object, and answers each with one line of JSON. */
fun main() {
    while (true) {
        val request = JSONObject(readlnOrNull() ?: return)
        val answer = try {
            when (val what = request.getString("do")) {
                "prepare" -> prepare(request)
                "yuv" -> yuv(request)
                "golden" -> golden(request)
                "labels" -> JSONObject().put("labels", JSONArray(parseLabels(text(request.getString("file")))))
                "rank" -> ranked(request)
                "classifier" -> classifier()
                "names" -> JSONObject().put("names", JSONArray(names()))
                "time" -> time(request)
                else -> throw IllegalArgumentException("no $what")
            }
        } catch (error: Exception) {
            JSONObject().put("error", "${error::class.java.simpleName}: ${error.message}")
        }
        println(answer)
    }
}

private fun text(file: String): String = File(file).readBytes().toString(Charsets.UTF_8)

private fun JSONArray.floats(): List<Float> = List(length()) { getDouble(it).toFloat() }

private fun specOf(o: JSONObject): ModelSpec {
    val mean = o.getJSONArray("mean").floats()
    val quantization =
        if (o.has("scale_in")) Quantization(o.getDouble("scale_in").toFloat(), o.getInt("zero_point")) else null
    return ModelSpec(
        name = "case",
        asset = "",
        labelsAsset = null,
        sha256 = "",
        input = InputSpec(
            width = o.getInt("crop_width"),
            height = o.getInt("crop_height"),
            channels = mean.size,
            layout = Layout.valueOf(o.getString("layout")),
            type = ElementType.valueOf(o.getString("type")),
            quantization = quantization,
        ),
        output = OutputSpec(o.optInt("classes", 10)),
        preprocess = Preprocess(
            resize = o.getInt("resize"),
            cropWidth = o.getInt("crop_width"),
            cropHeight = o.getInt("crop_height"),
            interpolation = Interpolation.valueOf(o.getString("interpolation").uppercase()),
            mean = mean,
            std = o.getJSONArray("std").floats(),
            scale = o.getDouble("scale").toFloat(),
            channelOrder = ChannelOrder.valueOf(o.getString("channel_order")),
        ),
        minSqnrDb = o.optDouble("min_sqnr_db", 30.0),
    )
}

private fun pixelsOf(o: JSONObject): Pixels {
    val bytes = ByteBuffer.wrap(File(o.getString("argb")).readBytes()).order(ByteOrder.LITTLE_ENDIAN)
    val argb = IntArray(bytes.remaining() / Int.SIZE_BYTES)
    bytes.asIntBuffer().get(argb)
    return Pixels(argb, o.getInt("width"), o.getInt("height"))
}

private fun write(input: ModelInput, file: String) {
    val bytes = when (input) {
        is ModelInput.Bytes -> input.values
        is ModelInput.Floats -> ByteArray(input.values.size * Float.SIZE_BYTES).also {
            ByteBuffer.wrap(it).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().put(input.values)
        }
    }
    File(file).writeBytes(bytes)
}

/** Twice with one preprocessor: what is left of a photo in its buffers must not show in the next. */
private fun prepare(o: JSONObject): JSONObject {
    val preprocessor = Preprocessor(specOf(o))
    val other = Pixels(IntArray(50 * 70) { 0x00ff7f3f * it }, 50, 70)
    preprocessor.prepare(other, Orientation.ROTATED_90)
    val counting = Counting(pixelsOf(o))
    write(preprocessor.prepare(counting, Orientation.ofExif(o.getInt("orientation"))), o.getString("out"))
    return JSONObject().put("pixels", counting.pixels)
}

/** How many pixels of a picture were asked for. */
private class Counting(private val source: PixelSource) : PixelSource by source {
    var pixels = 0L

    override fun read(left: Int, top: Int, width: Int, height: Int, into: IntArray) {
        pixels += width.toLong() * height
        source.read(left, top, width, height, into)
    }
}

private fun planeOf(o: JSONObject): Plane {
    val bytes = File(o.getString("file")).readBytes()
    val direct = ByteBuffer.allocateDirect(bytes.size)
    direct.put(bytes)
    direct.position(0)
    return Plane(direct, o.getInt("row_stride"), o.getInt("pixel_stride"))
}

private fun yuv(o: JSONObject): JSONObject {
    val planes = listOf("y", "u", "v").map { planeOf(o.getJSONObject(it)) }
    val (y, u, v) = planes
    val frame = YuvPixels(o.getInt("width"), o.getInt("height"), y, u, v, o.getInt("left"), o.getInt("top"))
    val preprocessor = Preprocessor(specOf(o))
    write(preprocessor.prepare(frame, Orientation.ofRotation(o.getInt("rotation"))), o.getString("out"))
    return JSONObject()
}

private fun golden(o: JSONObject): JSONObject {
    val spec = specOf(o)
    val samples = readGolden(File(o.getString("file")).readBytes(), spec)
    val noise = o.optDouble("noise", 0.0).toFloat()
    val shift = o.optInt("shift", 0)
    val scores = samples.map { s ->
        FloatArray(s.scores.size) { s.scores[(it + shift) % s.scores.size] * (1 + if (it % 2 == 0) noise else -noise) }
    }
    val result = checkGolden(samples, scores, spec.minSqnrDb, o.getBoolean("integers"))
    val first = (samples[0].input as ModelInput.Floats).values
    return JSONObject()
        .put("samples", samples.size)
        .put("sqnr", result.sqnrDb.coerceIn(-999.0, 999.0))
        .put("top1", result.top1)
        .put("failures", JSONArray(result.failures))
        .put("first", JSONArray(first.take(5).map { it.toDouble() }))
        .put("sum", first.sumOf { it.toDouble() })
}

private fun ranked(o: JSONObject): JSONObject {
    val scores = o.getJSONArray("scores").let { a ->
        FloatArray(a.length()) { if (a.isNull(it)) Float.NaN else a.getDouble(it).toFloat() }
    }
    val k = o.getInt("k")
    return JSONObject()
        .put("order", JSONArray(topK(scores, k).toList()))
        .put("labels", JSONArray(rank(scores, listOf("zero", "one"), k).map { it.label }))
        .put("probabilities", JSONArray(rank(scores, emptyList(), k).map { "${it.probability}" }))
}

/** A model that notices calls at the same time, and calls after its end. */
private class Fake(override val spec: ModelSpec) : Model {
    val running = AtomicInteger()
    val most = AtomicInteger()
    val runs = AtomicInteger()
    @Volatile var closes = 0
    @Volatile var usedAfterClose = false

    override fun run(input: ModelInput): FloatArray {
        if (closes > 0) usedAfterClose = true
        most.set(maxOf(most.get(), running.incrementAndGet()))
        Thread.sleep(2)
        running.decrementAndGet()
        runs.incrementAndGet()
        return floatArrayOf(0f, 2f, 1f)
    }

    override fun close() {
        if (running.get() > 0) usedAfterClose = true
        closes++
    }
}

private fun classifier(): JSONObject = runBlocking {
    val half = listOf(0.5f, 0.5f, 0.5f)
    val spec = ModelSpec(
        "fake", "", null, "", InputSpec(8, 8, 3, Layout.NHWC), OutputSpec(3),
        Preprocess(8, 8, 8, Interpolation.BILINEAR, half, half, 1f / 255, ChannelOrder.RGB), 30.0,
    )
    val model = Fake(spec)
    val classifier = Classifier(model, listOf("a", "b", "c"))
    val photo = Pixels(IntArray(20 * 10) { it }, 20, 10)
    val first = (1..40).map { async(Dispatchers.IO) { classifier.classify(photo, Orientation.UPRIGHT, 2) } }.awaitAll()
    val late = (1..20).map { async { runCatching { classifier.classify(photo, Orientation.UPRIGHT) } } }
    while (model.running.get() == 0) yield() // one is in work, the others wait
    classifier.close()
    classifier.close()
    val refused = late.awaitAll().mapNotNull { it.exceptionOrNull() }
    val after = runCatching { classifier.classify(photo, Orientation.UPRIGHT) }.exceptionOrNull()
    withTimeout(10_000) { while (model.closes == 0) delay(1) }
    delay(20)
    JSONObject()
        .put("labels", JSONArray(first[0].predictions.map { it.label }))
        .put("same", first.map { it.predictions }.toSet().size)
        .put("most", model.most.get())
        .put("closes", model.closes)
        .put("used_after_close", model.usedAfterClose)
        .put("refused", JSONArray(refused.map { it::class.java.simpleName }.distinct()))
        .put("after", "$after")
}

private fun time(o: JSONObject): JSONObject {
    val preprocessor = Preprocessor(specOf(o))
    val photo = pixelsOf(o)
    val orientation = Orientation.ofExif(o.getInt("orientation"))
    val nanos = (1..o.getInt("runs")).map {
        val start = System.nanoTime()
        preprocessor.prepare(photo, orientation)
        System.nanoTime() - start
    }
    return JSONObject().put("best_ms", nanos.min() / 1e6)
}
