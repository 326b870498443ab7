"""The zoo, exported: every model to every runtime, in the precisions that the contract promises."""

from pathlib import Path

import pytest

import edgekit
from edgekit.models import list_models
from edgekit.targets import TARGETS

CASES = [(spec.name, "fp32") for spec in list_models()] + [("lvt", "fp16"), ("mobilenet-v2", "fp16")]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_artifact_is_the_float_model(name: str, precision: str, tmp_path: Path) -> None:
    artifacts = edgekit.export(name, "all", precision=precision, num_classes=1000, out=tmp_path)
    assert [a.manifest.target for a in artifacts] == list(TARGETS)
    for artifact in artifacts:
        (proof,) = artifact.manifest.verification
        assert proof.passed
        assert proof.sqnr_db >= {"fp32": 60, "fp16": 35}[precision]
        assert proof.top1_agreement == 1
        assert proof.samples >= 4
        if artifact.manifest.target == "executorch":
            # The contract: at most 2 delegates and 5 ops outside. float16 pays one cast at each end.
            delegation = artifact.manifest.delegation
            assert delegation.partitions <= 2
            assert delegation.fallback_count <= (0 if precision == "fp32" else 2)
            assert all(f.reason for f in delegation.fallback)
