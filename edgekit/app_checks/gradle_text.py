"""The text of Gradle build files, in Groovy and Kotlin, read without running it."""

import re

# Strings first, so that "https://…" is no comment.
_TOKENS = re.compile(
    r'"""(?:.|\n)*?"""|\'\'\'(?:.|\n)*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*(?:.|\n)*?(?:\*/|\Z)'
)
_STRING = re.compile(r'"((?:\\.|[^"\\\n])*)"|\'((?:\\.|[^\'\\\n])*)\'')
_BRACKETS = re.compile(r"[()\[\]{}\n]")
_LONGEST = 4000


def without_comments(text: str) -> str:
    """The same text with blanks for comments: every line keeps its number."""
    return _TOKENS.sub(lambda m: re.sub(r"[^\n]", " ", m[0]) if m[0][:2] in ("//", "/*") else m[0], text)


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def statement(text: str, start: int) -> str:
    """From `start` to the end of its statement: the end of the line outside of all brackets."""
    depth, end = 0, start + _LONGEST
    for found in _BRACKETS.finditer(text, start, end):
        if found[0] in "([{":
            depth += 1
        elif found[0] in ")]}":
            depth -= 1
            if depth < 0:
                return text[start : found.start()]
        elif depth == 0 and not text[start : found.start()].rstrip().endswith((",", "=", "+")):
            return text[start : found.start()]
    return text[start:end]


def strings(text: str) -> tuple[str, ...]:
    """The contents of its string literals, in order."""
    return tuple(double or single for double, single in _STRING.findall(text))
