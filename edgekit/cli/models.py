"""`edgekit models`."""

import typer

from edgekit.cli._options import JSON


def models(
    context: typer.Context,
    name: str = typer.Argument(None, help="Show this model's card."),
    as_json: bool = JSON,
) -> None:
    """List the zoo, or show the card of one model."""
    from edgekit.cli._render import count
    from edgekit.cli._terminal import terminal
    from edgekit.types import ModelSpec

    with terminal(context.obj) as screen:
        from edgekit.models import ZOO, shipped_card, shipped_tags

        def card(spec: ModelSpec) -> dict[str, object]:
            keys = ("name", "family", "params", "macs", "input", "num_classes", "paper", "licence", "weights", "notes")
            found = {key: getattr(spec, key) for key in keys}
            return {**found, "weights": (*shipped_tags(spec.name), *spec.weights)}

        if name is None:
            if as_json:
                screen.json([card(spec) for spec in ZOO.values()])
                return
            screen.print(f"{'name':<24}{'params':>10}{'MACs':>11}  input")
            for spec in ZOO.values():
                screen.print(
                    f"{spec.name:<24}{count(spec.params):>10}{count(spec.macs):>11}  {'x'.join(map(str, spec.input))}"
                )
            screen.print("\nNext: edgekit models NAME, or edgekit export -m NAME -t all")
        elif as_json:
            screen.json(card(ZOO[name]))
        else:
            for key, value in card(ZOO[name]).items():
                shown = (
                    f"{value:,}"
                    if isinstance(value, int)
                    else ", ".join(map(str, value))
                    if isinstance(value, tuple)
                    else value
                )
                screen.print(f"{key:<12}{shown}")
            for tag in shipped_tags(name):
                screen.print(f"  {tag:<10}{shipped_card(name, tag).trained}")
