// What SwiftPM adds to a target that has resources.
import Foundation

extension Bundle {
    static var module: Bundle { fatalError() }
}
