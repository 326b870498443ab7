// Of Core ML, what packages use: types and signatures alone.
import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public final class MLModelConfiguration {
    public init() {}
    public var computeUnits: MLComputeUnits = .all
}
public enum MLMultiArrayDataType: Int { case double = 65600, float32 = 65568, float16 = 65552, int32 = 131104 }
public final class MLMultiArray {
    public convenience init<Scalar>(_ shaped: MLShapedArray<Scalar>) { fatalError() }
    init() {}
    public var dataType: MLMultiArrayDataType { fatalError() }
    public var count: Int { fatalError() }
    public subscript(n: Int) -> NSNumber { fatalError() }
}
public struct MLShapedArray<Scalar> {
    public init(scalars: [Scalar], shape: [Int]) { fatalError() }
    public init(_ array: MLMultiArray) { fatalError() }
    public var scalars: [Scalar] { fatalError() }
}
public final class MLFeatureValue {
    public init(multiArray: MLMultiArray) {}
    public var multiArrayValue: MLMultiArray? { fatalError() }
}
public protocol MLFeatureProvider { func featureValue(for name: String) -> MLFeatureValue? }
public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public func featureValue(for name: String) -> MLFeatureValue? { fatalError() }
}
public final class MLModel {
    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        fatalError()
    }
    public static func compileModel(at url: URL) async throws -> URL { fatalError() }
    public func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider { fatalError() }
    public func prediction(from input: MLFeatureProvider) async throws -> MLFeatureProvider { fatalError() }
}
