import CoreGraphics
import Foundation
import ImageIO

/// Image files, decoded by ImageIO as they are stored: orientation is told, not applied.
enum ImageFile {
    static func decoded(_ url: URL) throws -> (CGImage, ImageOrientation) {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil) else {
            throw ClassificationError.undecodableImage(url.lastPathComponent)
        }
        return try decoded(source, name: url.lastPathComponent)
    }

    static func decoded(_ data: Data) throws -> (CGImage, ImageOrientation) {
        guard let source = CGImageSourceCreateWithData(data as CFData, nil) else {
            throw ClassificationError.undecodableImage("\(data.count) bytes")
        }
        return try decoded(source, name: "\(data.count) bytes")
    }

    private static func decoded(_ source: CGImageSource, name: String) throws -> (CGImage, ImageOrientation) {
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [String: Any]
        let width = properties?[kCGImagePropertyPixelWidth as String] as? Int ?? 0
        let height = properties?[kCGImagePropertyPixelHeight as String] as? Int ?? 0
        guard let image = image(of: source, width: width, height: height) else {
            throw ClassificationError.undecodableImage(name)
        }
        let number = properties?[kCGImagePropertyOrientation as String] as? Int ?? 1
        // As other readers do: a number that is none of EXIF's leaves the photo as it lies.
        return (image, ImageOrientation(rawValue: number) ?? .up)
    }

    /// At half its size (or a quarter, ...) where it has more than 24 megapixels, so that it fits into an app's memory.
    private static func image(of source: CGImageSource, width: Int, height: Int) -> CGImage? {
        var divisor = 1
        while (width / divisor) * (height / divisor) > 24_000_000 { divisor *= 2 }
        if divisor == 1 { return CGImageSourceCreateImageAtIndex(source, 0, nil) }
        let options: [String: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways as String: true,
            kCGImageSourceThumbnailMaxPixelSize as String: max(width, height) / divisor,
        ]
        return CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary)
    }
}
