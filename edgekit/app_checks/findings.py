"""How checks say what they found, and what a check is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from edgekit.app_checks.files import Unreadable
from edgekit.types import Finding

App = TypeVar("App")


@dataclass(frozen=True)
class Check(Generic[App]):
    """One thing to check: `run` yields what is wrong or cannot be known; `promise` holds where it yields nothing."""

    name: str
    promise: str
    run: Callable[[App], Iterable[Finding]]


def wrong(detail: str, remedy: str, file: str = "", line: int = 0) -> Finding:
    return Finding(check="", status="wrong", detail=detail, remedy=remedy, file=file, line=line)


def unknown(detail: str, remedy: str = "", file: str = "", line: int = 0) -> Finding:
    return Finding(check="", status="unknown", detail=f"not checked: {detail}", remedy=remedy, file=file, line=line)


def run(check: Check[App], app: App) -> tuple[Finding, ...]:
    """Its findings under its name, at least one; a file that cannot be read is one, and never hides the others."""
    found: list[Finding] = []
    try:
        found.extend(check.run(app))
    except Unreadable as error:
        found.append(unknown(str(error)))
    if not found:
        found.append(Finding(check="", status="ok", detail=check.promise))
    return tuple(
        replace(f, check=check.name, detail=_text(f.detail), remedy=_text(f.remedy), file=_text(f.file))
        for f in dict.fromkeys(found)
    )


def _text(text: str) -> str:
    """A file's name need not be Unicode; what is said of it is."""
    return text.encode("utf-8", "replace").decode()
