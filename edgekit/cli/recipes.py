"""`edgekit recipes`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON


def recipes(
    context: typer.Context,
    name: str = typer.Argument(None, metavar="[NAME]", help="Print this recipe, or copy it with -o."),
    out: Path = typer.Option(None, "-o", "--out", help="The file to write, or a folder to put it into."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    as_json: bool = JSON,
) -> None:
    """List the recipes that come along, or copy one to change it and give it to `edgekit train`."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal
    from edgekit.errors import BadInput

    with terminal(context.obj) as screen:
        from edgekit.recipes import copy_recipe
        from edgekit.recipes import recipes as come_along

        found = come_along()
        if name is None:
            if out is not None:
                raise BadInput("-o says where to, but not which recipe", "Type: edgekit recipes NAME -o FILE")
            if as_json:
                screen.json([{k: v for k, v in asdict(card).items() if k != "text"} for card in found.values()])
                return
            for card in found.values():
                screen.print(f"{card.name:<26}{card.model}, {card.data}: {' → '.join(card.stages)}")
                screen.print(f"  {card.about}")
            screen.print("\nNext: edgekit recipes NAME -o FILE.yaml, then edgekit train FILE.yaml")
            return
        path = None if out is None else copy_recipe(name, out, force=force)
        card = found[name.removesuffix(".yaml")]
        if as_json:
            screen.json({**asdict(card), "path": None if path is None else str(path)})
        elif path is None:
            screen.print(card.text.rstrip("\n"))
        else:
            screen.print(f"{path}\nNext: edgekit train {path}")
