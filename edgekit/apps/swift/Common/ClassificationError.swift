import Foundation

/// Why a photo could not be classified.
public enum ClassificationError: Error, Equatable, Sendable {
    /// The package was built without this file.
    case missingResource(String)
    /// No pixel to look at.
    case emptyImage
    /// What ImageIO or Core Image cannot read.
    case undecodableImage(String)
    /// A `CVPixelBuffer` whose format is none of BGRA, RGBA, grey and 4:2:0 of two planes with 8 bits.
    case unsupportedPixelFormat(UInt32)
    /// The runtime could not load the model.
    case modelNotLoaded(String)
    /// The runtime gave something else than one score a class.
    case unexpectedOutput(String)
}

extension ClassificationError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .missingResource(let name): "\(name) is not in the package's resources"
        case .emptyImage: "The image has no pixels"
        case .undecodableImage(let why): "The image cannot be read: \(why)"
        case .unsupportedPixelFormat(let format): "Pixel buffers of format \(Self.fourCharacters(format)) are not read"
        case .modelNotLoaded(let why): "The model cannot be loaded: \(why)"
        case .unexpectedOutput(let what): "The model gave \(what)"
        }
    }

    private static func fourCharacters(_ code: UInt32) -> String {
        let bytes = [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: code >> $0) }
        return bytes.allSatisfy { (0x20...0x7e).contains($0) } ? String(decoding: bytes, as: UTF8.self) : "\(code)"
    }
}
