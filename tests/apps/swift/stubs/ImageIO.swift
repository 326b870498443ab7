// Of ImageIO, what packages use: types and signatures alone.
import CoreGraphics
import Foundation

public final class CGImageSource {}
nonisolated(unsafe) public let kCGImagePropertyOrientation: CFString = ""
nonisolated(unsafe) public let kCGImagePropertyPixelWidth: CFString = ""
nonisolated(unsafe) public let kCGImagePropertyPixelHeight: CFString = ""
nonisolated(unsafe) public let kCGImageSourceCreateThumbnailFromImageAlways: CFString = ""
nonisolated(unsafe) public let kCGImageSourceThumbnailMaxPixelSize: CFString = ""
public func CGImageSourceCreateThumbnailAtIndex(_ s: CGImageSource, _ n: Int, _ options: CFDictionary?) -> CGImage? {
    fatalError()
}
public func CGImageSourceCreateWithURL(_ url: CFURL, _ options: CFDictionary?) -> CGImageSource? { fatalError() }
public func CGImageSourceCreateWithData(_ data: CFData, _ options: CFDictionary?) -> CGImageSource? { fatalError() }
public func CGImageSourceCreateImageAtIndex(_ s: CGImageSource, _ n: Int, _ options: CFDictionary?) -> CGImage? {
    fatalError()
}
public func CGImageSourceCopyPropertiesAtIndex(
    _ s: CGImageSource, _ n: Int, _ options: CFDictionary?
) -> CFDictionary? { fatalError() }
