"""What the rules of R8 and ProGuard keep, read from their text."""

import re
from dataclasses import dataclass

# A keep option, its modifiers, an annotation, a class and what stands in its braces.
_RULE = re.compile(
    r"-(keep|keepclasseswithmembers)((?:\s*,\s*\w+)*)\s+"
    r"(?:@(?P<annotation>[\w.$*?]+)\s+)?"
    r"(?:!?\w+\s+)*?"
    r"(?:class|interface|enum|@interface)\s+(?P<name>[\w.$*?,!\s]+?)"
    r"(?:\s+(?:extends|implements)\s+[\w.$*?]+)?\s*(?:\{(?P<body>[^{}]*)\}|(?=\s-|\s*$))"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule that keeps classes with members under their names: a pattern of names, and an annotation or ""."""

    pattern: re.Pattern[str]
    annotation: str = ""

    def keeps(self, name: str) -> bool:
        # fbjni and ExecuTorch annotate what their native code needs with DoNotStrip, and with nothing else.
        annotated = not self.annotation or self.annotation.rsplit(".", 1)[-1] == "DoNotStrip"
        return annotated and self.pattern.fullmatch(name) is not None


def keep_rules(text: str) -> tuple[Rule, ...]:
    """The rules of one file that keep classes whole: neither shrunk, nor renamed, nor without members."""
    text = re.sub(r"#[^\n]*", "", text)
    rules = []
    for found in _RULE.finditer(text):
        modifiers = found[2]
        if "allowshrinking" in modifiers or "allowobfuscation" in modifiers:
            continue
        if not re.search(r"(?:^|[;\s{])(?:\*|<methods>|native\s+<methods>)\s*;", found["body"] or ""):
            continue
        names = [n.strip() for n in found["name"].split(",")]
        rules += [
            Rule(pattern=_pattern(name), annotation=found["annotation"] or "") for name in names if name[:1] != "!"
        ]
    return tuple(rules)


def _pattern(name: str) -> re.Pattern[str]:
    """`**` is any run of characters, `*` one without dots, `?` one character, as in ProGuard's manual."""
    parts = re.split(r"(\*\*|\*|\?)", name)
    meaning = {"**": r".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(meaning.get(p, re.escape(p)) for p in parts))
