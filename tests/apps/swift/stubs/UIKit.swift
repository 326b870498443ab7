// Of UIKit, what packages use: types and signatures alone.
@_exported import CoreImage
import CoreGraphics
import Foundation

open class UIImage {
    public enum Orientation: Int { case up, down, left, right, upMirrored, downMirrored, leftMirrored, rightMirrored }
    public var imageOrientation: Orientation { fatalError() }
    public var cgImage: CGImage? { fatalError() }
    public var ciImage: CIImage? { fatalError() }
}
