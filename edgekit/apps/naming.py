"""Names that a compiler takes, and text that it does not read as code."""

import re
import unicodedata

_JAVA_AND_KOTLIN = """
abstract as assert boolean break byte by case catch char class const continue data default do double else enum extends
false final finally float for fun goto if implements import in inner instanceof int interface internal is it long
native new null object open operator out override package private protected public return sealed short static strictfp
super suspend switch synchronized this throw throws transient true try typealias typeof val var vararg void volatile
when where while
"""
_SWIFT = """
actor any as associatedtype async await break case catch class continue default defer deinit do else enum extension
fallthrough false fileprivate for func guard if import in init inout internal is let nil open operator precedencegroup
private protocol public repeat rethrows return self static struct subscript super switch throw throws true try
typealias var where while
"""
KEYWORDS = frozenset((_JAVA_AND_KOTLIN + _SWIFT).split())
LONGEST = 60


def type_name(text: str) -> str:
    """`text` as the name of a type: "mobilenet-v2" → "MobilenetV2"."""
    words = _words(text)
    name = "".join(word[:1].upper() + word[1:] for word in words)[:LONGEST]
    return name if name[:1].isalpha() else f"Model{name}"


def identifier(text: str) -> str:
    """`text` in lower case, for files, resources and packages: "MobileNet V2" → "mobilenet_v2"."""
    name = "_".join(_words(text)).lower()[:LONGEST].strip("_")
    if not name[:1].isalpha():
        name = f"model_{name}".rstrip("_")
    return f"{name}_" if name in KEYWORDS else name


def _words(text: str) -> list[str]:
    """Runs of ASCII letters and digits; accents are dropped, what has no ASCII form vanishes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", plain)


def kotlin_string(text: str) -> str:
    """A Kotlin literal of `text`: no quote ends it, no dollar starts a template, no line break breaks it."""
    units = text.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[n : n + 2], "big") for n in range(0, len(units), 2))
    return '"' + "".join(chr(c) if _is_plain(chr(c)) else f"\\u{c:04x}" for c in codes) + '"'


def swift_string(text: str) -> str:
    """A Swift literal of `text`: no quote ends it, no backslash interpolates; a lone surrogate becomes U+FFFD."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return '"' + "".join(c if _is_plain(c) else f"\\u{{{ord(c):x}}}" for c in whole) + '"'


def comment(text: str) -> str:
    """`text` on one line that cannot end a comment: printable ASCII without stars and slashes in a row."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def _is_plain(character: str) -> bool:
    return " " <= character <= "~" and character not in '"\\$'
