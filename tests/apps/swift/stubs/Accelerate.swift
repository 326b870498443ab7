// Of Accelerate, what packages use: types and signatures alone.
import CoreGraphics
import Foundation

public enum CGColorRenderingIntent { case defaultIntent }
public struct vImage_CGImageFormat {
    public init?(
        bitsPerComponent: Int, bitsPerPixel: Int, colorSpace: CGColorSpace, bitmapInfo: CGBitmapInfo,
        renderingIntent: CGColorRenderingIntent = .defaultIntent
    ) { fatalError() }
}
public enum vImage {
    public struct Options: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }
        public static let noFlags = Options([])
    }
}
public struct vImage_Buffer {
    public var data: UnsafeMutableRawPointer!
    public var height: UInt
    public var width: UInt
    public var rowBytes: Int
    public init(cgImage: CGImage, format: vImage_CGImageFormat, flags: vImage.Options = .noFlags) throws { fatalError() }
    public func free() {}
}
