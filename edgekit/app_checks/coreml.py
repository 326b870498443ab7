"""The oldest iOS that a Core ML model runs on, from the first bytes of its file."""

from edgekit.app_checks.files import Unreadable

# Model.proto of coremltools: specificationVersion, "The version of the Core ML specification"; the releases are those
# of coremltools.target and of the table "Core ML specification versions" in Apple's documentation.
_IOS = {
    1: "11.0",
    2: "11.2",
    3: "12.0",
    4: "13.0",
    5: "14.0",
    6: "15.0",
    7: "16.0",
    8: "17.0",
    9: "18.0",
    10: "26.0",
}
HEAD = 1 << 16


def ios_of(head: bytes) -> tuple[int, str]:
    """(specification version, iOS) of a .mlmodel file by its start; raises `Unreadable` for what is none, or is newer.

    Protocol Buffers write fields in any order, but every writer puts this one, which is number 1, first.
    """
    if head[:1] != b"\x08":  # field 1, a varint
        raise Unreadable("does not begin as a Core ML model does")
    version = 0
    for n, byte in enumerate(head[1:6]):
        version |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            if version not in _IOS:
                raise Unreadable(f"has specification version {version}, of which no iOS is known here")
            return version, _IOS[version]
    raise Unreadable("does not begin as a Core ML model does")
