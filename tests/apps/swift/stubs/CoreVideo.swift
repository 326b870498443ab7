// Of CoreVideo, what packages use: types and signatures alone.
import CoreGraphics
import Foundation

public final class CVBuffer {}
public typealias CVPixelBuffer = CVBuffer
public struct CVPixelBufferLockFlags: OptionSet, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let readOnly = CVPixelBufferLockFlags(rawValue: 1)
}
public typealias OSType = UInt32
public typealias CVReturn = Int32
public let kCVPixelFormatType_32BGRA: OSType = 0x4247_5241
public let kCVPixelFormatType_32RGBA: OSType = 0x5247_4241
public let kCVPixelFormatType_OneComponent8: OSType = 0x4C30_3038
public let kCVPixelFormatType_420YpCbCr8BiPlanarFullRange: OSType = 0x3432_3066
public let kCVPixelFormatType_420YpCbCr8BiPlanarVideoRange: OSType = 0x3432_3076
nonisolated(unsafe) public let kCVImageBufferYCbCrMatrixKey: CFString = ""
nonisolated(unsafe) public let kCVImageBufferYCbCrMatrix_ITU_R_709_2: CFString = ""
nonisolated(unsafe) public let kCVImageBufferYCbCrMatrix_ITU_R_2020: CFString = ""
@discardableResult
public func CVPixelBufferLockBaseAddress(_ b: CVPixelBuffer, _ f: CVPixelBufferLockFlags) -> CVReturn { fatalError() }
@discardableResult
public func CVPixelBufferUnlockBaseAddress(_ b: CVPixelBuffer, _ f: CVPixelBufferLockFlags) -> CVReturn { fatalError() }
public func CVPixelBufferGetPixelFormatType(_ b: CVPixelBuffer) -> OSType { fatalError() }
public func CVPixelBufferGetWidth(_ b: CVPixelBuffer) -> Int { fatalError() }
public func CVPixelBufferGetHeight(_ b: CVPixelBuffer) -> Int { fatalError() }
public func CVPixelBufferGetBytesPerRow(_ b: CVPixelBuffer) -> Int { fatalError() }
public func CVPixelBufferGetBytesPerRowOfPlane(_ b: CVPixelBuffer, _ plane: Int) -> Int { fatalError() }
public func CVPixelBufferGetBaseAddress(_ b: CVPixelBuffer) -> UnsafeMutableRawPointer? { fatalError() }
public func CVPixelBufferGetBaseAddressOfPlane(_ b: CVPixelBuffer, _ plane: Int) -> UnsafeMutableRawPointer? {
    fatalError()
}
public func CVBufferCopyAttachment(_ b: CVBuffer, _ key: CFString, _ mode: UnsafeMutablePointer<Int32>?) -> AnyObject? {
    fatalError()
}
