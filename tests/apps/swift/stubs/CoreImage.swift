// Of CoreImage, what packages use: types and signatures alone.
import CoreGraphics
import Foundation

public final class CIImage { public var extent: CGRect { fatalError() } }
public final class CIContext {
    public init() {}
    public func createCGImage(_ image: CIImage, from: CGRect) -> CGImage? { fatalError() }
}
