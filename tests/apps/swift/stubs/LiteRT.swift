// Of LiteRT's Swift API, what packages use: types and signatures alone.
import Foundation

public enum Accelerator: Int32 { case none = 0, cpu = 1, gpu = 2, npu = 4 }
public protocol ConcreteOptions {}
public enum CpuKernelMode: Int32 { case delegate, reference, builtin }
public final class CpuOptions: ConcreteOptions {
    public init() throws {}
    public func setKernelMode(_ mode: CpuKernelMode) throws {}
    public func setNumThreads(_ count: Int) throws {}
}
public final class Options {
    public init() throws {}
    public func setHardwareAccelerators(_ accelerators: Set<Accelerator>) throws {}
    public func addConcreteOptions(_ options: ConcreteOptions) throws {}
}
public final class Environment { public init() throws {} }
public final class TensorBuffer {
    public func write<T>(_ data: [T]) throws {}
    public func write(_ data: Data) throws {}
    public func read() throws -> Data { fatalError() }
    public func read<T>() throws -> [T] { fatalError() }
}
public final class CompiledModel {
    public init(filePath: String, environment: Environment, options: Options? = nil) throws {}
    public func createInputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { fatalError() }
    public func createOutputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { fatalError() }
    public func run(
        inputs: [TensorBuffer], outputs: [TensorBuffer], options: Options? = nil, signatureIndex: Int = 0
    ) throws {}
}
