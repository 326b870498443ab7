// Of CoreGraphics, what packages use: types and signatures alone, so that a compiler without Apple's SDK can check them.
import Foundation

public typealias CFURL = NSURL
public typealias CFData = NSData
public typealias CFString = NSString
public typealias CFDictionary = NSDictionary

public enum CGImageAlphaInfo: UInt32 { case none, premultipliedLast, premultipliedFirst, last, first }
public struct CGBitmapInfo: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}
public enum CGColorSpaceModel: Int32 { case unknown = -1, monochrome, rgb, cmyk, lab, deviceN, indexed, pattern }
public final class CGColorSpace: Sendable {
    nonisolated(unsafe) public static let sRGB: CFString = NSString(string: "sRGB")
    public init?(name: CFString) { fatalError() }
    public var model: CGColorSpaceModel { fatalError() }
}
public final class CGImage: @unchecked Sendable {
    public var width: Int { fatalError() }
    public var height: Int { fatalError() }
    public var alphaInfo: CGImageAlphaInfo { fatalError() }
    public var colorSpace: CGColorSpace? { fatalError() }
}
