/// How a photo is held, by EXIF's numbers: where its first row and column belong.
public enum ImageOrientation: Int, Sendable, CaseIterable {
    case up = 1
    case upMirrored = 2
    case down = 3
    case downMirrored = 4
    case leftMirrored = 5
    case right = 6
    case rightMirrored = 7
    case left = 8

    /// Whether width and height change places.
    var swapsSides: Bool { rawValue >= 5 }

    /// Where a source's pixel lands upright: `start + x * right + y * down`, in pixels.
    func walk(width: Int, height: Int) -> (start: Int, right: Int, down: Int) {
        let last = width * height - 1
        switch self {
        case .up: return (0, 1, width)
        case .upMirrored: return (width - 1, -1, width)
        case .down: return (last, -1, -width)
        case .downMirrored: return (last - width + 1, 1, -width)
        case .leftMirrored: return (0, height, 1)
        case .right: return (height - 1, height, -1)
        case .rightMirrored: return (last, -height, -1)
        case .left: return (last - height + 1, -height, 1)
        }
    }
}
