// Of ONNX Runtime's Objective-C API as Swift sees it, what packages use: types and signatures alone.
import Foundation

public enum ORTLoggingLevel: Int32 { case verbose, info, warning, error, fatal }
public enum ORTTensorElementDataType: Int32 { case undefined, float, int8, uInt8, int32, uInt32, int64, uInt64, string }
public final class ORTEnv { public init(loggingLevel: ORTLoggingLevel) throws {} }
public final class ORTCoreMLExecutionProviderOptions { public init() {} }
public final class ORTSessionOptions {
    public init() throws {}
    public func setIntraOpNumThreads(_ count: Int32) throws {}
    public func appendCoreMLExecutionProvider(with options: ORTCoreMLExecutionProviderOptions) throws {}
}
public final class ORTRunOptions {}
public final class ORTValue {
    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {}
    public func tensorData() throws -> NSMutableData { fatalError() }
}
public final class ORTSession {
    public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {}
    public func run(
        withInputs inputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?
    ) throws -> [String: ORTValue] { fatalError() }
}
