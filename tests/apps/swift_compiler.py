"""Swift's compiler where there is one, and the harness that runs a package's own code on this machine."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.types import Preprocess
from tests.apps.cases import Case

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "edgekit" / "apps" / "swift"
SWIFT = ROOT / "tests" / "apps" / "swift"


def swiftc() -> str | None:
    """What EDGEKIT_SWIFTC names, or `swiftc` on PATH."""
    return os.environ.get("EDGEKIT_SWIFTC") or shutil.which("swiftc")


def compile_swift(*arguments: str | Path) -> None:
    """One call of the compiler, whose every warning is an error."""
    command = [swiftc() or "swiftc", "-warnings-as-errors", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A case for the harness: how its pixels are laid out, and what Python makes of them, in the model's layout."""

    name: str
    entry: Mapping[str, Any]
    pixels: bytes
    expected: NDArray[Any]
    tolerance: NDArray[Any] | float


def entry(
    p: Preprocess, *, nhwc: bool = False, dtype: str = "float32", scale: float = 1.0, zero: int = 0
) -> dict[str, Any]:
    """`p` as the harness reads it."""
    return {
        "resize": p.resize, "crop_height": p.crop[0], "crop_width": p.crop[1], "filter": p.interpolation,
        "mean": list(p.mean), "std": list(p.std), "scale": p.scale, "bgr": p.channel_order == "BGR",
        "nhwc": nhwc, "dtype": dtype, "input_scale": scale, "zero_point": zero,
    }  # fmt: skip


def interleaved(case: Case, layout: str, padding: int) -> tuple[bytes, dict[str, Any]]:
    """The photo's bytes with rows that end in `padding`, and what describes them."""
    shifts = {"rgba": (16, 8, 0, 24), "bgra": (0, 8, 16, 24), "grey": (8,)}[layout]
    rows = np.stack([(case.argb >> s & 0xFF).astype(np.uint8) for s in shifts], -1).reshape(len(case.argb), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    height, width = case.argb.shape
    shape = {"width": width, "height": height, "bytes_per_row": rows.shape[1], "layout": layout}
    return rows.tobytes(), {**shape, "orientation": case.orientation}


def run_harness(program: Path, folder: Path, prepared: Sequence[Prepared], others: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness answers; tensors lie in `folder` as `N.out`, case by case. `others`: files by name."""
    entries = []
    for n, case in enumerate(prepared):
        (folder / f"{n}.raw").write_bytes(case.pixels)
        entries.append({**case.entry, "name": case.name, "file": f"{n}.raw"})
    (folder / "cases.json").write_text(json.dumps(entries))
    for name, content in others.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    done = subprocess.run([program, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())


def safetensors(header: Any, body: bytes = b"") -> bytes:
    """A file of that header, whether it fits the body or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def text_of(scalars: Iterable[int]) -> str:
    return "".join(map(chr, scalars))


HOSTILE = (
    "class", "self", "Type", "init", 'quote"; evil() //', "\\(evil())", "\\u{41}", "$evil", "new\nevil()",
    "a */ evil() /*", "emoji 🌼👩‍👩‍👧", "雏菊", "ﬁancé", "\r\n\0\t", "\u2028\u2029\x85", "lone \ud83d", "9lives", "",
    "-", "x" * 300, '"""', "#\"",
)  # fmt: skip
"""What models and classes might be called."""
