"""`edgekit inspect`."""

import typer

from edgekit.cli._options import JSON


def inspect(
    context: typer.Context,
    artifact: str = typer.Argument(..., help="The artifact's folder."),
    as_json: bool = JSON,
) -> None:
    """Show inputs, outputs, ops, what the delegate takes and why not the rest, and size by layer."""
    from dataclasses import asdict

    from edgekit.cli._render import delegation_lines, shapes, size
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import inspection
        from edgekit.artifacts import manifest_json

        result = inspection.inspect(artifact)
        manifest = result.artifact.manifest
        if as_json:
            screen.json({**manifest_json(manifest), "path": artifact, "ops": [asdict(o) for o in result.ops]})
            return
        screen.print(
            f"{manifest.name} for {manifest.target} in {manifest.precision}, {size(result.artifact.size_bytes)}"
        )
        screen.print("\n".join([*shapes(manifest), *delegation_lines(manifest.delegation)]))
        screen.print(f"ops in the file ({sum(o.count for o in result.ops)})")
        for o in result.ops:
            screen.print(f"  {o.count:5} x {o.op}" + ("" if o.delegated else "  outside the delegate"))
        screen.print("largest layers")
        for name, held in sorted(manifest.layers.items(), key=lambda item: -item[1])[:10]:
            screen.print(f"  {size(held):>9}  {name}")
