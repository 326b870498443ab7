#if canImport(UIKit)
import CoreGraphics
import CoreImage
import UIKit

extension ImageClassifying {
    /// The `top` likeliest classes of an image, upright as its `imageOrientation` says.
    public func classify(_ image: UIImage, top: Int = 5) async throws -> [Classification] {
        try await classify(prepare(image), top: top)
    }

    /// Does what the model needs done to an image, on the calling thread.
    public func prepare(_ image: UIImage) throws -> ModelInput {
        try prepare(image.pixelImage(), orientation: ImageOrientation(image.imageOrientation))
    }
}

extension ImageOrientation {
    /// UIKit counts other than EXIF does.
    public init(_ orientation: UIImage.Orientation) {
        switch orientation {
        case .up: self = .up
        case .upMirrored: self = .upMirrored
        case .down: self = .down
        case .downMirrored: self = .downMirrored
        case .left: self = .left
        case .leftMirrored: self = .leftMirrored
        case .right: self = .right
        case .rightMirrored: self = .rightMirrored
        @unknown default: self = .up
        }
    }
}

extension UIImage {
    /// The image's pixels, rendered where it only describes a Core Image filter.
    fileprivate func pixelImage() throws -> CGImage {
        if let cgImage { return cgImage }
        guard let ciImage else { throw ClassificationError.emptyImage }
        guard let rendered = CIContext().createCGImage(ciImage, from: ciImage.extent) else {
            throw ClassificationError.undecodableImage("Core Image cannot render it")
        }
        return rendered
    }
}
#endif
