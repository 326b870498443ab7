"""Fixtures: the shared data, a tiny real model, and the command line run in this process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgekit.cli import main
from edgekit.types import Artifact

if TYPE_CHECKING:
    from edgekit.loading import Loaded

# As `edgekit` does for itself: set before any test imports torch, and passed on to subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("EDGEKIT_SHARED", ROOT.parent / "shared"))


LONG = ("test_readme.py", "test_benchmarking.py")
"""They begin first, so that no worker waits for one of them at the end."""
MEASURING = (
    *("test_adb.py", "test_benchmarking.py", "test_operators.py", "test_profiling.py", "test_protocol.py"),
    *("test_reporting.py", "test_runner.py", "test_ssh.py"),
)
"""They time what they run, all on the same core: one at a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file run in one worker, which makes what they share once; exports of the zoo share nothing.

    xdist's own groups are suffixes of node ids, which pytest 9 no longer lets it set: it deals out single tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0].rpartition("/")[2]
            return "measuring" if name in MEASURING else nodeid if name == "test_zoo.py" else name

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on what another has drawn."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with photos, weights and golden vectors; CI sets EDGEKIT_REQUIRE_SHARED where it must be there."""
    if not SHARED.is_dir():
        reason = f"no shared data at {SHARED}; EDGEKIT_SHARED names another place"
        if os.environ.get("EDGEKIT_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SHARED


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def few_photos(shared: Path, path: Path, of_each: int) -> Path:
    """Photos of CIFAR-10 with labels, `of_each` of the ten classes, as an image set at `path`."""
    import numpy as np

    from edgekit.data import open_images

    images = open_images(shared / "data" / "cifar10_test.npz")
    chosen = [i for label in range(10) for i in [j for j in range(800) if images.labels[j] == label][:of_each]]
    pixels = np.stack([np.asarray(images[i].pixels) for i in chosen])
    np.savez(path, images=pixels, labels=np.array([images.labels[i] for i in chosen]), classes=np.array(images.classes))
    return path


@pytest.fixture(scope="session")
def resnet(shared: Path) -> "Loaded":
    """ResNet-20 with published weights for CIFAR-10."""
    from edgekit.loading import load
    from edgekit.types import ModelRequest

    weights = shared / "data" / "resnet20_cifar10.safetensors"
    return load(ModelRequest(model="resnet20-cifar", weights=str(weights)))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("export", "-m", …)` as typed in a shell: exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


TINY = '''
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


class Net(nn.Module):
    """Conv, batch norm, attention, LayerNorm, GELU and residuals: nothing of the zoo."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.GELU())
        self.mix = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.attention = Attention(16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.mix(x)
        x = self.attention(x.flatten(2).transpose(1, 2))
        x = x + self.mlp(x)
        return self.head(x.mean(1))


def net(num_classes=10):
    model = Net(num_classes)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 1.5)
    return model
'''


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`file.py:net`, a model that edgekit has never seen, as a user would name it."""
    path = tmp_path_factory.mktemp("user") / "unseen.py"
    path.write_text(TINY, encoding="utf-8")
    return f"{path}:net"


@pytest.fixture(scope="session")
def small_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Two convolutions and a linear for each runtime that devices run, by target; not verified."""
    import torch
    from torch import nn

    import edgekit

    torch.manual_seed(0)
    body = (nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    out, targets = tmp_path_factory.mktemp("small"), ("executorch", "tflite", "onnx")
    made = edgekit.export(net, targets, input_shape=[(1, 3, 48, 48)], out=out, verify=False)
    return {a.manifest.target: a for a in made}


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photo that scikit-learn ships."""
    import sklearn

    return Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg"


TARGETS = ("coreml", "executorch", "tflite", "onnx")
PRECISIONS = ("fp32", "fp16")


def process(*arguments: str | Path) -> list[str]:
    """The `edgekit` that is installed beside this Python, as a shell would start it."""
    return [str(Path(sys.executable).parent / "edgekit"), *map(str, arguments)]


@dataclass(frozen=True)
class Exported:
    """All four artifacts of the tiny model in one precision, and what the command said."""

    folder: Path
    out: str
    err: str

    def artifact(self, target: str) -> Path:
        return next(self.folder.glob(f"net-{target}-*"))


Exporter = Callable[..., Exported]


@pytest.fixture(scope="session")
def export_tiny(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """`export_tiny("fp16", hash_seed=1)`: the tiny model exported to all targets in a process of its own, once."""
    done: dict[tuple[str, int], Exported] = {}

    def export(precision: str = "fp32", hash_seed: int = 1) -> Exported:
        if (precision, hash_seed) not in done:
            folder = tmp_path_factory.mktemp("exported") / "out"
            command = process("export", "-m", tiny, "-p", precision, "--imgsz", "64", "-o", folder, "--json")
            environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            done[precision, hash_seed] = Exported(folder, result.stdout, result.stderr)
        return done[precision, hash_seed]

    return export


@pytest.fixture
def artifact(export_tiny: Exporter, tmp_path: Path) -> Callable[..., Path]:
    """`artifact("onnx")`: a copy of a verified artifact of the tiny model, to be used or damaged."""

    def copy(target: str = "onnx", precision: str = "fp32") -> Path:
        source = export_tiny(precision).artifact(target)
        return Path(shutil.copytree(source, tmp_path / source.name))

    return copy


@pytest.fixture
def all_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers too small to gain from int8 are placed in it all the same."""
    from edgekit.quantization import placement

    monkeypatch.setattr(placement, "_MACS", 1 / 16)
