import Foundation

/// Models that were compiled on the device, kept where iOS may delete them when space runs short.
enum CompiledModelCache {
    /// Where `spec`'s compiled model lies or would lie.
    static func url(for spec: ModelSpec) throws -> URL {
        let caches = try FileManager.default.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let folder = caches.appendingPathComponent("edgekit", isDirectory: true)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder.appendingPathComponent("\(spec.resource)-\(spec.fingerprint).mlmodelc", isDirectory: true)
    }

    /// Moves a compiled model from its temporary place to `url`, whole or not at all.
    static func store(_ compiled: URL, as url: URL) throws {
        if FileManager.default.fileExists(atPath: url.path) {
            _ = try FileManager.default.replaceItemAt(url, withItemAt: compiled)
        } else {
            try FileManager.default.moveItem(at: compiled, to: url)
        }
    }
}
