import Accelerate
import CoreGraphics

extension Pixels {
    /// The image's pixels as its file has them: alpha dropped, colours neither composited nor converted.
    ///
    /// vImage hands over colours that are not multiplied by alpha, which a CGContext would multiply. An image that was
    /// multiplied before (one that an app drew) is divided again: exact where it is opaque, rounded where it is
    /// translucent, black where it is wholly transparent, as no colour is left there.
    init(_ image: CGImage, orientation: ImageOrientation, luma: Bool) throws {
        guard image.width > 0, image.height > 0 else { throw ClassificationError.emptyImage }
        let isGrey = image.colorSpace?.model == .monochrome && image.alphaInfo == .none
        guard let space = Self.ownSpace(of: image, isGrey: isGrey),
            let format = vImage_CGImageFormat(
                bitsPerComponent: 8, bitsPerPixel: isGrey ? 8 : 32, colorSpace: space,
                bitmapInfo: CGBitmapInfo(
                    rawValue: (isGrey ? CGImageAlphaInfo.none : CGImageAlphaInfo.last).rawValue))
        else { throw ClassificationError.undecodableImage("no 8-bit format fits it") }
        var buffer: vImage_Buffer
        do {
            buffer = try vImage_Buffer(cgImage: image, format: format)
        } catch {
            throw ClassificationError.undecodableImage("\(error)")
        }
        defer { buffer.free() }
        guard let base = buffer.data else { throw ClassificationError.emptyImage }
        let source = InterleavedPixels(
            base: base, width: Int(buffer.width), height: Int(buffer.height), bytesPerRow: buffer.rowBytes,
            layout: isGrey ? .grey : .rgba)
        try self.init(source, orientation: orientation, luma: luma)
    }

    /// The image's own colour space, so that its values stay as they are; sRGB for CMYK, palettes and the like.
    private static func ownSpace(of image: CGImage, isGrey: Bool) -> CGColorSpace? {
        if isGrey || image.colorSpace?.model == .rgb { return image.colorSpace }
        return CGColorSpace(name: CGColorSpace.sRGB)
    }
}
