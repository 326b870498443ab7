"""`edgekit doctor`."""

import typer

from edgekit.cli._options import JSON


def doctor(context: typer.Context, as_json: bool = JSON) -> None:
    """Export a tiny model to every target and run it: what works here, and the remedy for what does not."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal
    from edgekit.errors import EnvironmentProblem

    with terminal(context.obj) as screen:
        from edgekit import inspection

        with screen.progress() as step:
            results = inspection.doctor(step)
        if as_json:
            screen.json([asdict(r) for r in results])
        else:
            for r in results:
                screen.print(f"{'ok     ' if r.works else 'MISSING'}  {r.name:<11} {r.detail}")
                if r.remedy:
                    screen.print(f"                     {r.remedy}")
        if broken := [r.name for r in results if not r.works]:
            raise EnvironmentProblem(f"{len(broken)} of {len(results)} do not work here: {', '.join(broken)}")
