"""`edgekit report`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON


def report(
    context: typer.Context,
    results: list[str] = typer.Argument(  # noqa: B008
        ...,
        metavar="RESULTS...",
        help="Files of `profile -o`, folders of `benchmark -o`; and files of `evaluate --json` that are named as the"
        " artifact's folder, and artifacts' folders, for accuracy and parity.",
    ),
    out: Path = typer.Option(Path("report.html"), "-o", "--out", help="The HTML file to write."),  # noqa: B008
    title: str = typer.Option("", "--title", help="In place of the models' names."),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    show: bool = typer.Option(False, "--open", help="Open it in the browser."),
    as_json: bool = JSON,
) -> None:
    """Put results into one HTML file with tables and plots, which needs no network."""
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import reporting

        done = reporting.report(results, out, title=title, force=force)
        if as_json:
            values = {"artifacts": done.artifacts, "failed": done.failed, "warnings": done.warnings}
            screen.json({"path": str(done.path), **values})
        else:
            failed = f", {done.failed} failed" if done.failed else ""
            screen.print(f"{done.artifacts} artifacts{failed}, {done.warnings} warnings  {done.path}")
        if show:
            import webbrowser

            if not webbrowser.open(done.path.resolve().as_uri()):
                screen.note(f"no browser was found; open {done.path} in one")
