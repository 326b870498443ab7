"""The binary AndroidManifest.xml of an APK: two of its attributes."""

import struct

from edgekit.app_checks.files import Unreadable

# android.R.attr, as the documentation of the class lists them.
_MIN_SDK = 0x0101020C
_EXTRACT = 0x010104EA
_XML, _RESOURCES, _ELEMENT = 0x0003, 0x0180, 0x0102


def manifest_values(content: bytes) -> tuple[int | None, bool | None]:
    """(minSdkVersion, extractNativeLibs), None for what is not said; raises `Unreadable`.

    The format is that of ResourceTypes.h of the Android platform: chunks of (type, length of header, length).
    """
    found: dict[int, int] = {}
    try:
        kind, header, _ = struct.unpack_from("<HHI", content)
        if kind != _XML:
            raise Unreadable("is no binary XML")
        names: tuple[int, ...] = ()
        at = header
        while at + 8 <= len(content):
            kind, header, length = struct.unpack_from("<HHI", content, at)
            if length < 8 or at + length > len(content):
                raise Unreadable("is cut off")
            if kind == _RESOURCES:
                names = struct.unpack_from(f"<{(length - header) // 4}I", content, at + header)
            elif kind == _ELEMENT:
                start, size, count = struct.unpack_from("<HHH", content, at + header + 8)
                if size < 20 or header + start + count * size > length:
                    raise Unreadable("has attributes that lie outside it")
                for n in range(count):
                    _, name, _, _, _, _, value = struct.unpack_from("<IIIHBBI", content, at + header + start + n * size)
                    if name < len(names):
                        found.setdefault(names[name], value)
            at += length
    except struct.error as error:
        raise Unreadable("is cut off") from error
    return found.get(_MIN_SDK), None if _EXTRACT not in found else found[_EXTRACT] != 0
