import CoreVideo

extension Pixels {
    /// A camera frame's pixels; throws `ClassificationError.unsupportedPixelFormat`.
    init(_ buffer: CVPixelBuffer, orientation: ImageOrientation, luma: Bool) throws {
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        let format = CVPixelBufferGetPixelFormatType(buffer)
        switch format {
        case kCVPixelFormatType_32BGRA:
            try self.init(Self.interleaved(buffer, .bgra), orientation: orientation, luma: luma)
        case kCVPixelFormatType_32RGBA:
            try self.init(Self.interleaved(buffer, .rgba), orientation: orientation, luma: luma)
        case kCVPixelFormatType_OneComponent8:
            try self.init(Self.interleaved(buffer, .grey), orientation: orientation, luma: luma)
        case kCVPixelFormatType_420YpCbCr8BiPlanarFullRange:
            try self.init(Self.biPlanar(buffer, isFullRange: true), orientation: orientation, luma: luma)
        case kCVPixelFormatType_420YpCbCr8BiPlanarVideoRange:
            try self.init(Self.biPlanar(buffer, isFullRange: false), orientation: orientation, luma: luma)
        default:
            throw ClassificationError.unsupportedPixelFormat(format)
        }
    }

    private static func interleaved(
        _ buffer: CVPixelBuffer, _ layout: InterleavedPixels.Layout
    ) throws -> InterleavedPixels {
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw ClassificationError.emptyImage }
        return InterleavedPixels(
            base: base, width: CVPixelBufferGetWidth(buffer), height: CVPixelBufferGetHeight(buffer),
            bytesPerRow: CVPixelBufferGetBytesPerRow(buffer), layout: layout)
    }

    private static func biPlanar(_ buffer: CVPixelBuffer, isFullRange: Bool) throws -> BiPlanarPixels {
        guard let luma = CVPixelBufferGetBaseAddressOfPlane(buffer, 0),
            let chroma = CVPixelBufferGetBaseAddressOfPlane(buffer, 1)
        else { throw ClassificationError.emptyImage }
        return BiPlanarPixels(
            luma: luma, lumaBytesPerRow: CVPixelBufferGetBytesPerRowOfPlane(buffer, 0),
            chroma: chroma, chromaBytesPerRow: CVPixelBufferGetBytesPerRowOfPlane(buffer, 1),
            width: CVPixelBufferGetWidth(buffer), height: CVPixelBufferGetHeight(buffer),
            matrix: matrix(of: buffer), isFullRange: isFullRange)
    }

    /// The matrix that the frame says it was made with; ITU-R 601, as photos have it, where it says none.
    private static func matrix(of buffer: CVPixelBuffer) -> BiPlanarPixels.Matrix {
        let said = CVBufferCopyAttachment(buffer, kCVImageBufferYCbCrMatrixKey, nil) as? String
        if said == kCVImageBufferYCbCrMatrix_ITU_R_709_2 as String { return .bt709 }
        return said == kCVImageBufferYCbCrMatrix_ITU_R_2020 as String ? .bt2020 : .bt601
    }
}
