"""Make the file of weights that comes along with the package from what a recipe has trained.

    edgekit train recipes/cifar10-micronet.yaml
    python benchmarks/ship_weights.py build/cifar10-micronet cifar10

Half precision; the card says which recipe made them, on what, and their top-1 as the run measured it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from edgekit.artifacts import write_file
from edgekit.models import read_card, read_state, weights_bytes
from edgekit.models._card import SHIPPED


def ship(run: Path, tag: str) -> Path:
    """Write the last weights of `run` as those of `tag`, and return where."""
    weights = run / "last.safetensors"
    card = read_card(weights)
    assert card is not None
    accuracy = json.loads((run / "accuracy.json").read_text(encoding="utf-8"))["float"]
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    evaluated = Path(recipe["data"]["evaluation"]).name
    trained = (
        f"recipes/{run.name}.yaml on {Path(recipe['data']['train']).name}, seed {recipe['seed']}: "
        f"top-1 {accuracy['top1']:.2f} % on the {accuracy['n']} images of {evaluated}"
    )
    destination = SHIPPED / f"{card.model}-{tag}.safetensors"
    write_file(destination, weights_bytes(read_state(weights), replace(card, trained=trained), torch.float16))
    return destination


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("tag")
    asked = parser.parse_args()
    print(ship(asked.run, asked.tag))
