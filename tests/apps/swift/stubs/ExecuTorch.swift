// Of ExecuTorch's Swift API, what packages use: types and signatures alone.
import Foundation

public protocol Scalar {}
extension Float: Scalar {}
extension UInt8: Scalar {}
extension Int8: Scalar {}
public final class Value {}
public protocol ValueConvertible {}
public final class Tensor<T: Scalar>: ValueConvertible {
    public init(_ scalars: [T], shape: [Int] = []) {}
    public init(_ values: [Value]) throws { fatalError() }
    public func scalars() -> [T] { fatalError() }
}
public final class Module {
    public init(filePath: String) {}
    public func load(_ method: String) throws {}
    public func forward(_ input: ValueConvertible) throws -> [Value] { fatalError() }
}
