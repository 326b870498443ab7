import CoreGraphics
import CoreVideo
import Foundation

/// Classifies photos of every kind that iOS has. Safe to use from any thread; photos wait for each other.
///
/// Results are the likeliest classes, likeliest first. Everything throws `ClassificationError`, or what the runtime throws.
public protocol ImageClassifying: Sendable {
    var engine: ClassificationEngine { get }
}

extension ImageClassifying {
    /// The classes' names, in the order of the model's output.
    public var labels: [String] { engine.labels }

    /// The `top` likeliest classes of a prepared photo.
    public func classify(_ input: ModelInput, top: Int = 5) async throws -> [Classification] {
        try await engine.classify(input, top: top)
    }

    /// The `top` likeliest classes of an image that is held as `orientation` says.
    public func classify(
        _ image: CGImage, orientation: ImageOrientation = .up, top: Int = 5
    ) async throws -> [Classification] {
        try await classify(prepare(image, orientation: orientation), top: top)
    }

    /// The `top` likeliest classes of a camera frame.
    ///
    /// In a capture callback call `prepare` in place of this: it copies what it needs, and the frame can go back to the
    /// camera before the model has run.
    public func classify(
        _ buffer: CVPixelBuffer, orientation: ImageOrientation = .up, top: Int = 5
    ) async throws -> [Classification] {
        try await classify(prepare(buffer, orientation: orientation), top: top)
    }

    /// The `top` likeliest classes of an image file, upright as its EXIF data says.
    public func classify(contentsOf url: URL, top: Int = 5) async throws -> [Classification] {
        try await classify(prepare(contentsOf: url), top: top)
    }

    /// The `top` likeliest classes of an image file's bytes, such as those of a picked photo.
    public func classify(_ data: Data, top: Int = 5) async throws -> [Classification] {
        try await classify(prepare(data), top: top)
    }

    /// Does what the model needs done to an image, on the calling thread.
    public func prepare(_ image: CGImage, orientation: ImageOrientation = .up) throws -> ModelInput {
        ModelInput(try Pixels(image, orientation: orientation, luma: isLuma), engine.spec)
    }

    /// Does what the model needs done to a camera frame, on the calling thread; the frame is free afterwards.
    public func prepare(_ buffer: CVPixelBuffer, orientation: ImageOrientation = .up) throws -> ModelInput {
        ModelInput(try Pixels(buffer, orientation: orientation, luma: isLuma), engine.spec)
    }

    /// Does what the model needs done to an image file, on the calling thread.
    public func prepare(contentsOf url: URL) throws -> ModelInput {
        let (image, orientation) = try ImageFile.decoded(url)
        return try prepare(image, orientation: orientation)
    }

    /// Does what the model needs done to an image file's bytes, on the calling thread.
    public func prepare(_ data: Data) throws -> ModelInput {
        let (image, orientation) = try ImageFile.decoded(data)
        return try prepare(image, orientation: orientation)
    }

    private var isLuma: Bool { engine.spec.preprocessing.channels == 1 }
}
