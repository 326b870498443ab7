"""The README is true: its commands run, its Python runs, and what it names exists."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgekit.models import create_model
from tests.conftest import ROOT, Cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every `$ …` line of the console blocks, without its comment."""
    lines = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    return [line[2:].split("  #")[0].strip() for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """A folder in which a user could type the README's commands."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copy(photo, folder / "PHOTO.jpg")
    with Image.open(photo) as opened:
        whole = opened.convert("RGB")
    for place, label in enumerate(("bee", "daisy")):
        (folder / "PHOTOS" / label).mkdir(parents=True)
        for n in range(6):
            box = (40 * n + 20 * place, 20 * n, 40 * n + 20 * place + 300, 20 * n + 300)
            whole.crop(box).save(folder / "PHOTOS" / label / f"{n}.jpg")
    from safetensors.torch import save_file

    save_file(create_model("mobilenet-v2").state_dict(), folder / "w.safetensors")
    torch.save({"state_dict": create_model("lvt").state_dict()}, folder / "published.pth")
    program = torch.export.export(torch.nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 32, 32),))
    torch.export.save(program, folder / "program.pt2")
    return folder


def test_edgekit_commands_run(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    typed = [shlex.split(c) for c in commands() if c.startswith("edgekit ")]
    assert len(typed) >= 10
    # `predict` and others use the artifacts that the commands above them made, as a reader would.
    for words in typed:
        result = cli(*words[1:])
        assert result.code == 0, f"{' '.join(words)}\n{result.err}"


def test_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    zoo = (ROOT / "edgekit" / "models" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", README + zoo, re.DOTALL)
    assert len(blocks) == 2
    for text in blocks:
        exec(compile(text, "README.md", "exec"), {})


def test_tables_are_those_of_the_saved_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands():
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile
    for link in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / link).is_file()
