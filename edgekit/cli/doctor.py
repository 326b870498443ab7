"""`edgekit doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import JSON

if TYPE_CHECKING:
    from edgekit.cli._terminal import Terminal
    from edgekit.types import Finding, Health


def doctor(
    context: typer.Context,
    path: Path | None = typer.Argument(  # noqa: B008
        None, help="With --platform: an app, module or Swift package, or an APK, AAB or AAR."
    ),
    platform: str | None = typer.Option(None, "--platform", help="Check an app of yours instead: android or ios."),
    as_json: bool = JSON,
) -> None:
    """What works here, targets (by a tiny export) and devices, or what breaks an app; with the remedy."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal
    from edgekit.errors import BadInput, EnvironmentProblem

    with terminal(context.obj) as screen:
        if platform is not None:
            _app(screen, platform, path or Path(), as_json)
            return
        if path is not None:
            raise BadInput(f"which app is {path}?", f"Type: edgekit doctor --platform android {path} (or ios)")
        from edgekit import inspection

        with screen.progress() as step:
            results = inspection.doctor(step)
        if as_json:
            screen.json([asdict(r) for r in results])
        else:
            for r in results:
                screen.print(f"{_word(r)}  {r.name:<11} {r.detail}")
                if r.remedy:
                    screen.print(f"                     {r.remedy}")
        if broken := [r.name for r in results if not (r.works or r.optional)]:
            raise EnvironmentProblem(f"{len(broken)} of {len(results)} do not work here: {', '.join(broken)}")


def _word(health: "Health") -> str:
    return "ok     " if health.works else "not yet" if health.optional else "MISSING"


def _app(screen: "Terminal", platform: str, path: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from edgekit import app_checks
    from edgekit.errors import GateFailed

    findings = app_checks.check_app(platform, path)
    if as_json:
        screen.json([asdict(f) for f in findings])
    else:
        for finding in findings:
            screen.print(_line(finding))
            if finding.remedy:
                screen.print(f"{'':<26}{_printable(finding.remedy)}")
    if broken := [f for f in findings if f.status == "wrong"]:
        checks = ", ".join(dict.fromkeys(f.check for f in broken))
        raise GateFailed(
            f"{len(broken)} thing{'s' if len(broken) > 1 else ''} wrong in {path}: {checks}",
            "Each has what to type below it." if not as_json else "",
        )


def _line(finding: "Finding") -> str:
    word = {"ok": "ok", "wrong": "WRONG", "unknown": "?"}[finding.status]
    where = f"{finding.file}:{finding.line}" if finding.line else finding.file
    return f"{word:<7}{finding.check:<19}" + _printable(f"{where}: {finding.detail}" if where else finding.detail)


def _printable(text: str) -> str:
    """Names in an archive are someone else's: none may move the cursor or end a line."""
    return "".join(c if c.isprintable() else "?" for c in text)
