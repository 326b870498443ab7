"""What the tests of the model families share: golden vectors, random states, distances."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Gathers, scatters and windows: what deploy forms are there to avoid.
FORBIDDEN = ("im2col", "col2im", "gather", "index", "scatter", "unfold", "einsum", "expand", "repeat", "roll")

# One model a family, with the golden vectors that have its weights: of seeded ones nothing is left in int8.
FAMILIES = {
    "lvt": ("lvt", "lvt_cls"),
    "tiny-moat-0": ("moat", "tiny_moat_0"),
    "mobile-former-26m": ("mobileformer", "26m"),
    "micronet-m0": ("micronet", "m0"),
    "slab-deit-tiny": ("slab", "deit_tiny"),
}


@dataclass(frozen=True)
class Golden:
    """One published model's numbers: its record, its state under the published names, the images and the logits."""

    record: dict[str, Any]
    state: dict[str, Tensor]
    image: Tensor
    logits: Tensor


def golden(shared: Path, family: str, name: str) -> Golden:
    """The golden vectors `family`/`name`, with checksums checked; images are (B, C, H, W)."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    record = json.loads((shared / "golden" / family / f"{name}.json").read_text(encoding="utf-8"))
    state = rule.weights(record["state"], record["gain"])
    assert rule.checksum(state.values()) == record["crc32"]["weights"]
    image = torch.from_numpy(rule.example_input(record["input"] | {"layout": "NCHW"}))
    logits = torch.tensor(record["output"]["values"]).reshape(record["output"]["shape"])
    return Golden(record, {k: torch.from_numpy(v) for k, v in state.items()}, image, logits)


def relative(result: Tensor, reference: Tensor) -> float:
    """The largest relative L2 error over the samples of a batch."""
    difference = (result - reference).flatten(1).norm(dim=1)
    return float((difference / reference.flatten(1).norm(dim=1)).max().detach())


def randomized(model: nn.Module, gain: float = 1.2) -> nn.Module:
    """`model` in eval mode with every parameter and statistic drawn anew: initializations hide what they multiply by 0.

    Matrices have N(0, gain² / fan in), scales U(0.8, 1.2), shifts and means N(0, 0.1²), variances U(0.5, 1.5).
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 0
            parameter.copy_(torch.randn_like(parameter) * (gain / fan_in**0.5 if fan_in else 0.1))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.8, 1.2)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
