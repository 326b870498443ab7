"""The zoo, exported: every model to every runtime, in the precisions that the contract promises."""

import json
from pathlib import Path

import pytest
import torch

import edgekit
from edgekit.models import ZOO, list_models
from edgekit.targets import TARGETS
from edgekit.types import Artifact
from tests.conftest import ROOT
from tests.zoo import golden

# At least one of each family, the cheapest to lower. The others: `pytest -m slow`, or `make zoo-table`.
SMALL = (
    "lvt-gap", "tiny-moat-0", "mobile-former-26m", "micronet-m0", "slab-deit-tiny", "slab-pvtv2-b0", "resnet20-cifar",
    "mobilenet-v1-025", "mobilenet-v2", "mobilenet-v3-small",
)  # fmt: skip
# Seeded weights are no test of float16: MicroNet's logits are 1e-14, MOAT's maps below what float16 squares.
HALF = {
    "lvt": ("lvt", "lvt_cls"),
    "tiny-moat-0": ("moat", "tiny_moat_0"),
    "micronet-m0": ("micronet", "m0"),
    "slab-deit-tiny": ("slab", "deit_tiny"),
}
SAVED = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text(encoding="utf-8"))["results"]


def cases() -> list[object]:
    others = [pytest.param(s.name, marks=pytest.mark.slow) for s in list_models() if s.name not in SMALL]
    return [*SMALL, *others]


def check(artifacts: tuple[Artifact, ...]) -> None:
    assert [a.manifest.target for a in artifacts] == list(TARGETS)
    for artifact in artifacts:
        (proof,) = artifact.manifest.verification
        assert proof.passed
        assert proof.top1_agreement in (1, None)
        assert proof.samples >= 4
        assert all(f.reason for f in artifact.manifest.delegation.fallback)


def test_every_family_is_here() -> None:
    assert {ZOO[name].family for name in SMALL} == {spec.family for spec in list_models()}


@pytest.mark.parametrize("name", cases())
def test_every_artifact_is_the_float_model_and_the_table_is_true(name: str, tmp_path: Path) -> None:
    """The zoo's table (`make zoo-table`) has what this export gives; SQNR is the machine's, counts are not."""
    artifacts = edgekit.export(name, "all", out=tmp_path)
    check(artifacts)
    for artifact in artifacts:
        delegation, row = artifact.manifest.delegation, SAVED[name][artifact.manifest.target]
        assert row["partitions"] == delegation.partitions
        assert sum(row["outside"].values()) == delegation.fallback_count
        assert row["bytes"] == pytest.approx(artifact.size_bytes, rel=0.01)
        if artifact.manifest.target == "executorch":
            # The contract: at most 2 delegates and 5 ops outside.
            assert delegation.partitions <= 2
            assert delegation.fallback_count <= 5


@pytest.mark.parametrize("name", HALF)
def test_half_precision(shared: Path, name: str, tmp_path: Path) -> None:
    torch.save(golden(shared, *HALF[name]).state, tmp_path / "golden.pth")
    check(edgekit.export(name, "all", precision="fp16", weights=tmp_path / "golden.pth", out=tmp_path))


@pytest.mark.parametrize("name", ["micronet-m0", "lvt-gap"])
def test_a_backbone_exports(name: str, tmp_path: Path) -> None:
    artifacts = edgekit.export(name, "all", features_only=True, image_size=64, out=tmp_path)
    check(artifacts)
    strides = edgekit.create_model(name, features_only=True).strides
    for artifact in artifacts:
        assert [spec.shape[2:] for spec in artifact.manifest.outputs] == [(64 // s, 64 // s) for s in strides]
        # The classifier is not in the file: features need no weights of it.
        assert artifact.size_bytes < 4 * ZOO[name].params
