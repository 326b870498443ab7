"""What goes wrong, made to go wrong for real: the exit code, one `error:` with what was asked and what to type, no
traceback, and nothing left behind."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.conftest import TARGETS, Cli, Result, process
from tests.test_verification import model_files, reseal

Copier = Callable[..., Path]


def refused(result: Result, *said: str, code: int = 2) -> None:
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err.partition("\n")[0]
    for text in said:
        assert text in result.err
    assert result.out == ""


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder for artifacts that a test of a failure must leave as it was: not there."""
    folder = tmp_path / "out" / "deeper"
    yield folder
    assert not folder.parent.exists()


# ------------------------------------------------------------------------------------------ names and options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("-m mobilenet-v4 -t onnx", ["unknown model 'mobilenet-v4'", "Did you mean 'mobilenet-v"]),
        ("-m LVTT -t onnx", ["unknown model 'LVTT'", "'lvt'", "Known: "]),
        ("-m mobilenet-v2 -t onxx", ["unknown target 'onxx'", "Did you mean 'onnx'?"]),
        ("-m mobilenet-v2 -t onnx,litret", ["unknown target 'litret'", "'litert'"]),
        ("-m mobilenet-v2 -t ,", ["no target was given", "-t all"]),
        ("-m mobilenet-v2 -t onnx -p fp61", ["unknown precision 'fp61'", "Did you mean 'fp16'?", "fp32"]),
        ("-t onnx", ["Missing option '-m' / '--model'", "edgekit COMMAND --help"]),
        ("-m mobilenet-v2 --forse", ["No such option: --forse", "--force"]),
        ("-m mobilenet-v2 -t onnx --num-classes 0", ["--num-classes", "greater than or equal to 1"]),
        ("-m mobilenet-v2 -t onnx --num-classes ten", ["--num-classes", "integer"]),
        ("-m mobilenet-v2 -t onnx --batch-size 0", ["--batch-size", "greater than or equal to 1"]),
        ("-m mobilenet-v2 -t onnx --input-shape a,b", ["--input-shape 'a,b' is not a shape", "1,3,224,224"]),
        ("-m mobilenet-v2 -t onnx --input-shape 1,3,0,64", ["--input-shape '1,3,0,64' is not a shape"]),
        ("-m mobilenet-v2 -t onnx --input-shape 1,3,64", ["N,C,H,W", "--image-size"]),
        ("-m mobilenet-v2 -t onnx --input-shape 1,3,64,64 --input-shape 1,3,64,64", ["takes one input N,C,H,W"]),
        ("-m lvt -t onnx --features-only --labels l.txt", ["--labels names classes", "Leave --labels out"]),
        ("-m a.py:b -t onnx --features-only", ["--features-only is for models of the zoo"]),
        ("-m mobilenet-v2 -t onnx --imgsz 64 --mean 1,2", ["--mean has 2 values for 3 channels", "--mean 0.5,0.5,0.5"]),
        ("-m mobilenet-v2 -t onnx --imgsz 64 --mean one", ["--mean 'one' is not a list of numbers"]),
        ("-m mobilenet-v2 -t onnx --imgsz 64 --mean nan,0,0", ["--mean 'nan,0,0' is not a list of numbers"]),
        ("-m mobilenet-v2 -t onnx --imgsz 64 --std inf,1,1", ["--std 'inf,1,1' is not a list of numbers"]),
        ("-m mobilenet-v2 -t onnx --imgsz 64 --std 1,0,1", ["--std cannot be 0"]),
        ("-m lvt -t onnx --imgsz 64 --input-shape 1,3,96,96", ["--image-size and --input-shape both", "Leave one"]),
        ("-m a.py:b -t onnx --batch-size 2 --input-shape 1,3,96,96", ["--batch-size and --input-shape both"]),
        ("-m lvt -t onnx --imgsz 100", ["image sizes that 32 divides, not 100x100", "--image-size 128"]),
    ],
)
def test_a_name_or_value_that_is_none_is_refused_with_what_is_possible(
    cli: Cli, out: Path, arguments: str, said: list[str]
) -> None:
    refused(cli("export", *arguments.split(), "-o", out), *said)


def test_a_command_that_is_none_is_refused_with_what_is_close(cli: Cli) -> None:
    refused(cli("exprot", "-m", "lvt"), "No such command 'exprot'", "export")


def test_an_unknown_model_card_is_refused_with_what_is_close(cli: Cli) -> None:
    refused(cli("models", "mobilenetv2"), "unknown model 'mobilenetv2'", "Did you mean 'mobilenet-v2'")


def test_with_json_an_error_leaves_stdout_empty(cli: Cli, out: Path) -> None:
    refused(cli("export", "-m", "nothing", "-t", "onnx", "--json", "-o", out), "unknown model 'nothing'")


def test_debug_shows_where_it_happened(cli: Cli, out: Path) -> None:
    result = cli("export", "-m", "nothing", "-t", "onnx", "-o", out, "--debug")
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert "error: unknown model 'nothing'" in result.err


# ------------------------------------------------------------------------------------------ files of a model

MISSING = {
    "a weights file": "export -m mobilenet-v2 -t onnx --weights {}/no.safetensors",
    "a program": "export -m {}/no.pt2 -t onnx",
    "a python file": "export -m {}/no.py:net -t onnx",
    "labels": "export -m mobilenet-v2 -t onnx --labels {}/no.txt",
    "data": "evaluate mobilenet-v2 --data {}/no",
    "an artifact": "verify {}/no",
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_file_is_named(cli: Cli, tmp_path: Path, what: str) -> None:
    refused(cli(*MISSING[what].format(tmp_path).split()), f"{tmp_path}/no")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_image_is_named(cli: Cli, artifact: Copier, tmp_path: Path) -> None:
    refused(cli("predict", artifact(), tmp_path / "no.jpg"), f"there is no image {tmp_path}/no.jpg")


def test_a_file_without_what_to_call_in_it_is_refused_with_how_to_name_it(cli: Cli, tiny: str, out: Path) -> None:
    file = tiny.rpartition(":")[0]
    refused(cli("export", "-m", file, "-t", "onnx", "-o", out), "names a file but not what to call", f"{file}:NAME")


def test_a_callable_that_is_not_in_the_file_is_refused_with_what_is(cli: Cli, tiny: str, out: Path) -> None:
    refused(cli("export", "-m", f"{tiny}s", "-t", "onnx", "-o", out), "'nets'", "Did you mean 'net'?")


def seeded(num_classes: int = 1000) -> dict[str, torch.Tensor]:
    import edgekit

    return edgekit.create_model("mobilenet-v2", num_classes=num_classes).state_dict()


def export_with(cli: Cli, out: Path, weights: Path, *more: str) -> Result:
    return cli("export", "-m", "mobilenet-v2", "-t", "onnx", "--imgsz", "32", "--weights", weights, *more, "-o", out)


def test_weights_of_another_model_are_refused_with_the_keys(cli: Cli, out: Path, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in seeded().items()}
    state["classifier.1.weight"] = state["classifier.1.weight"][:, :7].contiguous()
    state["head.extra"] = torch.zeros(2)
    del state["features.0.0.weight"]
    save_file(state, tmp_path / "other.safetensors")
    refused(
        export_with(cli, out, tmp_path / "other.safetensors"),
        "holds the weights of another model than 'mobilenet-v2'",
        "1 missing: features.0.0.weight",
        "1 unexpected: head.extra",
        "1 of other shape: classifier.1.weight is (1000, 7), not (1000, 1280)",
        "edgekit models",
    )


def test_weights_for_another_number_of_classes_are_refused(cli: Cli, out: Path, tmp_path: Path) -> None:
    save_file(dict(seeded(10)), tmp_path / "ten.safetensors")
    refused(export_with(cli, out, tmp_path / "ten.safetensors"), "classifier.1.weight is (10, 1280), not (1000, 1280)")
    refused(export_with(cli, out, tmp_path / "ten.safetensors", "--num-classes", "7"), "is (10, 1280), not (7, 1280)")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pt"])
def test_a_truncated_weights_file_is_refused(cli: Cli, out: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    state = {"a": torch.zeros(1000)}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-700])
    refused(export_with(cli, out, path), f"{path} cannot be read as weights", "Save it as safetensors")


def test_a_weights_file_of_something_else_is_refused(cli: Cli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("these are not weights", encoding="utf-8")
    refused(export_with(cli, out, tmp_path / "weights.pth"), "cannot be read as weights")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    refused(export_with(cli, out, tmp_path / "list.pth"), "no state_dict")
    (tmp_path / "weights.h5").write_bytes(b"")
    refused(export_with(cli, out, tmp_path / "weights.h5"), "It reads .safetensors, .pth")


def test_folded_weights_that_lack_a_convolution_are_refused_with_its_name(cli: Cli, out: Path, tmp_path: Path) -> None:
    state = {**seeded(), "features.0.0.bias": torch.zeros(32), "features.bias": torch.zeros(1)}
    del state["features.0.0.weight"]
    save_file(state, tmp_path / "folded.safetensors")
    refused(
        export_with(cli, out, tmp_path / "folded.safetensors"),
        "1 missing: features.0.0.weight",
        "2 unexpected: features.0.0.bias, features.bias",
    )


def test_weights_that_hold_a_tensor_with_and_without_its_wrapping_are_refused(
    cli: Cli, out: Path, tmp_path: Path
) -> None:
    save_file({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "two.safetensors")
    refused(export_with(cli, out, tmp_path / "two.safetensors"), "has both a and module.a")


class Trap:
    """Unpickling this makes a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_weights_file_that_needs_code_to_load_is_refused_and_the_code_does_not_run(
    cli: Cli, out: Path, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Trap(sprung)}, tmp_path / "trap.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("trap.pth", "module.pth"):
        refused(export_with(cli, out, tmp_path / name), "cannot be read as weights", "need code to load are refused")
    assert not sprung.exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)  # the trap is a real one
    assert sprung.exists()


# ------------------------------------------------------------------------------------------ .pt2 files


class Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `static.pt2` and `dynamic.pt2`, as torch saves them."""
    folder = tmp_path_factory.mktemp("programs")
    x = torch.zeros(2, 3, 16, 16)
    torch.export.save(torch.export.export(Pool(), (x,)), folder / "static.pt2")
    batch = {"x": {0: torch.export.Dim("batch", min=2, max=8)}}
    torch.export.save(torch.export.export(Pool(), (x,), dynamic_shapes=batch), folder / "dynamic.pt2")
    return folder


def repack(source: Path, target: Path, change: Mapping[str, Callable[[bytes], bytes]]) -> Path:
    """A copy of an archive with some entries changed, or added where there was none."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        named = {f"{root}/{name}": how for name, how in change.items()}
        for name in old.namelist():
            new.writestr(name, named.pop(name, lambda content: content)(old.read(name)))
        for name, how in named.items():
            new.writestr(name, how(b""))
    return target


def swap(*pairs: tuple[str, str]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        for old, new in pairs:
            assert old.encode() in content
            content = content.replace(old.encode(), new.encode())
        return content

    return change


def export_program(cli: Cli, out: Path, path: Path) -> Result:
    return cli("export", "-m", path, "-t", "onnx", "-o", out)


def test_a_program_that_is_what_torch_saves_is_exported(cli: Cli, programs: Path, tmp_path: Path) -> None:
    assert export_program(cli, tmp_path / "done", programs / "static.pt2").code == 0


def code(sprung: Path) -> str:
    return f"__import__('os').mkdir('{sprung}')"


SYMBOL = "Symbol('s77', positive=True, integer=True)"
ESCAPED = (('"as_expr"', r'"as\u005fexpr"'), ('"expr_str"', r'"expr\u005fstr"'))
PICKLED = (('"use_pickle": false', '"use_pickle": true'),)
Change = dict[str, Callable[[bytes], bytes]]


def pickled(sprung: Path) -> Callable[[bytes], bytes]:
    return lambda _: pickle.dumps(Trap(sprung), protocol=2)


def graph(*pairs: tuple[str, str]) -> Change:
    return {"models/model.json": swap(*pairs)}


def renamed(sprung: Path) -> Change:
    name = f"x={code(sprung)}"
    return graph(('{"name": "x"}', f'{{"name": "{name}"}}'), ('"x": {"dtype"', f'"{name}": {{"dtype"'))


def weights(sprung: Path) -> Change:
    config = {"data/weights/model_weights_config.json": swap(*PICKLED)}
    return {**config, **{f"data/weights/weight_{n}": pickled(sprung) for n in (0, 1)}}


def constant(name: str, sprung: Path) -> Change:
    entry = json.dumps({"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None})
    config = swap(('{"config": {}}', f'{{"config": {{"c": {entry}}}}}'))
    return {"data/constants/model_constants_config.json": config, f"data/constants/{name}": pickled(sprung)}


def nested(change: Callable[[list], object]) -> Change:
    """The graph with its module's in_spec, which is JSON in a string, changed."""

    def how(content: bytes) -> bytes:
        document = json.loads(content)
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        change(spec[1]["children_spec"])
        signature["in_spec"] = json.dumps(spec).replace("(", r"\u0028")
        return json.dumps(document).encode()

    return {"models/model.json": how}


def module_to_import(sprung: Path) -> str:
    (sprung.parent / "edgekit_trap.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n", encoding="utf-8")
    return "edgekit_trap"


def enum(sprung: Path) -> Change:
    value = {"__enum__": True, "fqn": f"{module_to_import(sprung)}:E", "name": "a"}
    return nested(lambda children: children[1].update(context=json.dumps([value])))


def factory(sprung: Path) -> Change:
    names = {"default_factory_module": module_to_import(sprung), "default_factory_name": "E", "dict_context": []}
    spec = {"type": "collections.defaultdict", "context": names, "children_spec": []}
    return nested(lambda children: children.__setitem__(1, spec))


def keyword(sprung: Path) -> Change:
    context = json.dumps([f"a': {code(sprung)}, 'b"]).replace("(", r"\u0028")

    def change(children: list) -> None:
        children[1].update(context=context, children_spec=children[0]["children_spec"])
        children[0]["children_spec"] = []

    return nested(change)


# The archive that is changed, and how.
TRAPS: dict[str, tuple[str, Callable[[Path], Change]]] = {
    "a shape": ("dynamic", lambda s: graph((SYMBOL, code(s)))),
    "a shape spelt otherwise": ("dynamic", lambda s: graph((SYMBOL, code(s)), *ESCAPED)),
    "a name": ("static", renamed),
    "a pickled weight": ("static", weights),
    "pickled inputs": ("static", lambda s: {"data/sample_inputs/model.pt": pickled(s)}),
    "a pickled object": ("static", lambda s: constant("opaque_obj_0", s)),
    "a pickled object in a folder": ("static", lambda s: constant("opaque_obj_0/x", s)),
    "an enum among the keywords": ("static", enum),
    "a factory of dicts": ("static", factory),
    "a keyword": ("static", keyword),
}


# These are traps for torch.export.load as it is; two others it defuses itself, and the keyword waits for a call.
SPRUNG = set(TRAPS) - {"a pickled weight", "pickled inputs", "a keyword"}


def load_with_torch(path: Path) -> None:
    code = f"import torch; torch.export.load({str(path)!r}).module()"
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=False)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_program_that_would_run_code_is_refused_and_the_code_does_not_run(
    cli: Cli, out: Path, programs: Path, tmp_path: Path, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "edgekit_trap", raising=False)
    sprung = tmp_path / "sprung"
    source, change = TRAPS[trap]
    path = repack(programs / f"{source}.pt2", tmp_path / "trap.pt2", change(sprung))
    refused(export_program(cli, out, path), str(path))
    assert not sprung.exists()
    if trap in SPRUNG:
        load_with_torch(path)
        assert sprung.exists()


def two_in_one(good: Path, bad: Path, target: Path) -> Path:
    """One file in which Python, which reads it from its end, finds `good`, and torch, which trusts offsets, `bad`."""

    def parts(path: Path) -> tuple[bytes, bytes, bytes]:
        content = path.read_bytes()
        end = content.rindex(b"PK\x05\x06")
        start = int.from_bytes(content[end + 16 : end + 20], "little")
        return content[:start], content[start:end], content[end:]

    files, directory, end = parts(good)
    bad_files, bad_directory, _ = parts(bad)
    assert len(bad_directory) == len(directory)
    moved, at = bytearray(directory), 0
    while at < len(moved):
        offset = int.from_bytes(moved[at + 42 : at + 46], "little") + len(bad_files) - len(files)
        moved[at + 42 : at + 46] = offset.to_bytes(4, "little")
        at += 46 + sum(int.from_bytes(moved[i : i + 2], "little") for i in range(at + 28, at + 34, 2))
    end = end[:16] + len(bad_files).to_bytes(4, "little") + end[20:]
    target.write_bytes(bad_files + bad_directory + files + moved + end)
    return target


def test_torch_gets_the_program_that_was_checked_where_a_file_holds_two(
    cli: Cli, programs: Path, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    good = repack(programs / "static.pt2", tmp_path / "good.pt2", {})
    bad = repack(programs / "static.pt2", tmp_path / "bad.pt2", renamed(sprung))
    path = two_in_one(good, bad, tmp_path / "trap.pt2")
    assert export_program(cli, tmp_path / "done", path).code == 0
    assert not sprung.exists()
    load_with_torch(path)
    assert sprung.exists()


def test_a_compressed_program_is_refused_before_it_fills_the_memory(
    cli: Cli, out: Path, programs: Path, tmp_path: Path
) -> None:
    path = shutil.copy(programs / "static.pt2", tmp_path / "bomb.pt2")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("static/extra/zeros", bytes(10_000_000))
    refused(export_program(cli, out, path), str(path), "compressed", "torch.export.save")


class Keyword(nn.Module):
    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Mapped(nn.Module):
    def forward(self, d: dict[str, torch.Tensor]) -> torch.Tensor:
        return d["x"] * 2


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        return x * factor


class Constant(nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.ones(1, 3)


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("module", "arguments", "keywords"),
    [
        (Keyword(), (X,), {"y": X}),
        (Mapped(), ({"x": X},), {}),
        (Scaled(), (X, 3), {}),
        (Constant(), (), {}),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_program_that_takes_no_flat_tuple_of_tensors_is_refused(
    cli: Cli, out: Path, tmp_path: Path, module: nn.Module, arguments: tuple, keywords: dict
) -> None:
    torch.export.save(torch.export.export(module, arguments, keywords), tmp_path / "program.pt2")
    refused(export_program(cli, out, tmp_path / "program.pt2"), "a flat tuple of tensors", "Wrap it in a module")


def test_guards_that_a_program_brings_are_not_run(cli: Cli, programs: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    guards = swap(('"guards_code": []', f'"guards_code": ["{code(sprung)} is None"]'))
    path = repack(programs / "static.pt2", tmp_path / "guards.pt2", {"models/model.json": guards})
    assert export_program(cli, tmp_path / "done", path).code == 0
    assert not sprung.exists()


def test_a_program_with_a_native_library_is_refused(cli: Cli, out: Path, programs: Path, tmp_path: Path) -> None:
    library = {"data/aotinductor/model/x.so": lambda _: b"\x7fELF"}
    path = repack(programs / "static.pt2", tmp_path / "library.pt2", library)
    refused(export_program(cli, out, path), "holds more than tensors and a graph", "data/aotinductor/model/x.so")


def test_a_program_with_dynamic_shapes_is_refused_with_what_to_do(cli: Cli, out: Path, programs: Path) -> None:
    refused(export_program(cli, out, programs / "dynamic.pt2"), "dynamic shapes", "Export it without dynamic_shapes")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
def test_a_truncated_program_is_refused(cli: Cli, out: Path, programs: Path, tmp_path: Path, kept: float) -> None:
    content = (programs / "static.pt2").read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    refused(export_program(cli, out, path), str(path), "torch.export.save")


@pytest.mark.parametrize("option", ["--weights x", "--num-classes 5", "--image-size 64", "--batch-size 2"])
def test_what_a_program_has_fixed_cannot_be_changed(cli: Cli, out: Path, programs: Path, option: str) -> None:
    arguments = ("export", "-m", programs / "static.pt2", "-t", "onnx", *option.split(), "-o", out)
    refused(cli(*arguments), f"{option.split()[0]} cannot change a .pt2 file")


# ------------------------------------------------------------------------------------------ the user's own code

USERS = """
import torch
from torch import library, nn


class Branch(nn.Module):
    def forward(self, x):
        y = x.mean()
        if y > 0:
            x = x + 1
        return x.mean((2, 3))


class Broken(nn.Module):
    def forward(self, x):
        return x @ x.new_zeros(7, 7)


def raises():
    raise RuntimeError("the disk is on fire")


def number():
    return 42


def needs(width):
    return nn.Identity()


class Op(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.op = op

    def forward(self, x):
        x = self.conv(x)
        x = self.op(x)  # the line of the op
        return x.flatten(1)


@library.custom_op("edgekittest::scramble", mutates_args=())
def scramble(x: torch.Tensor) -> torch.Tensor:
    return x.flip(0) + 1


@scramble.register_fake
def _(x):
    return torch.empty_like(x)


def custom():
    return Op(lambda x: scramble(x))


def inverse():
    return Op(torch.linalg.inv)


def spectrum():
    return Op(lambda x: torch.fft.fft2(x).abs())


def ordered():
    return Op(lambda x: torch.sort(x, dim=-1).values)


def bessel():
    return Op(torch.special.i0)
"""


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "mine.py"
    path.write_text(USERS, encoding="utf-8")
    return path


def line_of(file: Path, text: str) -> str:
    """`mine.py:12: text` as an error names the line of a user's file that holds `text`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, start=1) if text in line]
    return f"{file.name}:{number}: {lines[number - 1].strip()}"


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("Branch", "if y > 0:", ["torch.export cannot capture Branch", "torch.where"]),
        ("Broken", "x.new_zeros(7, 7)", ["torch.export cannot capture Broken"]),
        ("raises", 'raise RuntimeError("the disk', ["RuntimeError: the disk is on fire"]),
        ("number", "", ["gave a int, not an nn.Module"]),
        ("needs", "", ["missing 1 required positional argument: 'width'"]),
    ],
)
def test_a_users_model_that_cannot_be_exported_is_told_the_line(
    cli: Cli, out: Path, users: Path, name: str, line: str, said: list[str]
) -> None:
    result = cli("export", "-m", f"{users}:{name}", "-t", "onnx", "--imgsz", "32", "-o", out)
    refused(result, *said, *([line_of(users, line)] if line else []))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import torch\nimport no_such_package\n", "No module named 'no_such_package'"),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(0)\n", "SystemExit"),
    ],
)
def test_a_users_file_that_does_not_import_is_told_the_line(
    cli: Cli, out: Path, tmp_path: Path, source: str, said: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source, encoding="utf-8")
    result = cli("export", "-m", f"{file}:net", "-t", "onnx", "-o", out)
    refused(result, f"importing {file} failed", said, f"broken.py:{len(source.splitlines())}")


def test_a_users_file_that_is_no_python_is_told_so(cli: Cli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def net(:\n", encoding="utf-8")
    refused(cli("export", "-m", f"{tmp_path}/broken.py:net", "-t", "onnx", "-o", out), "SyntaxError", "broken.py")


@pytest.mark.parametrize("name", ["mine.py", "json.py"])  # the second is a module of Python's own, too
def test_a_users_file_may_hold_a_dataclass_with_postponed_annotations(tmp_path: Path, name: str) -> None:
    from edgekit.user_code import call

    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n\n"
        "@dataclass\nclass Config:\n    width: int = 3\n\ndef net():\n    return nn.Linear(Config().width, 1)\n"
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    before = sys.path.copy()
    module = call(f"{tmp_path / name}:net", None, 0)
    assert isinstance(module, nn.Linear)
    assert sys.path == before
    assert sys.modules["json"] is json


def test_users_code_finds_its_neighbours_when_it_is_imported_and_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.user_code import call

    (tmp_path / "edgekit_neighbour.py").write_text("from torch import nn\nNet = nn.ReLU\n", encoding="utf-8")
    lazy = "def net():\n    from edgekit_neighbour import Net\n    return Net()\n"
    (tmp_path / "edgekit_lazy.py").write_text(lazy, encoding="utf-8")
    before = sys.path.copy()
    for place in (str(tmp_path / "edgekit_lazy.py"), "edgekit_lazy"):  # the second is found where it is typed
        assert isinstance(call(f"{place}:net", None, 0), nn.ReLU)
        assert sys.path == before
        for name in ("edgekit_neighbour", "edgekit_lazy"):
            sys.modules.pop(name, None)
        monkeypatch.chdir(tmp_path)


def test_a_module_handed_in_takes_no_number_of_classes_and_says_where_its_weights_are() -> None:
    from edgekit.errors import BadInput
    from edgekit.loading import load
    from edgekit.types import ModelRequest

    assert load(ModelRequest(model="Pool", image_size=16), Pool()).weights.source == "memory"
    with pytest.raises(BadInput, match="num_classes cannot change"):
        load(ModelRequest(model="Pool", image_size=16, num_classes=3), Pool())


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((), (), "(mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225 of"),
        ((0.5, 0.5, 0.5), (), "(std 0.229, 0.224, 0.225 of"),
        ((), (0.5, 0.5, 0.5), "(mean 0.485, 0.456, 0.406 of"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None),
    ],
)
def test_a_statistic_that_is_not_given_is_said_to_be_assumed(
    mean: tuple[float, ...], std: tuple[float, ...], said: str | None
) -> None:
    from edgekit.loading import load
    from edgekit.types import ModelRequest

    loaded = load(ModelRequest(model="Pool", image_size=16, mean=mean, std=std), Pool())
    assert [said in note for note in loaded.notes] == ([True] if said else [])


# Which op each target refuses: the one that PyTorch knows by itself, in the words that say which.
LOWERING = [
    *((target, "custom", "edgekittest.scramble") for target in TARGETS),
    *((target, "inverse", "aten.linalg_inv") for target in TARGETS),
    ("coreml", "spectrum", "fft"),
    ("executorch", "spectrum", "fft"),
    ("tflite", "spectrum", "aten._to_copy"),  # to complex numbers
    ("executorch", "ordered", "aten.sort"),
    ("tflite", "ordered", "aten.sort"),
    ("coreml", "bessel", "aten.i0"),
    ("executorch", "bessel", "aten.i0"),
    ("tflite", "bessel", "aten.i0"),
    ("onnx", "bessel", "i0"),
]


@pytest.mark.parametrize(("target", "name", "op"), LOWERING)
def test_an_op_that_a_target_lacks_is_named_with_its_source_line(
    cli: Cli, out: Path, users: Path, target: str, name: str, op: str
) -> None:
    result = cli("export", "-m", f"{users}:{name}", "-t", target, "--imgsz", "16", "-o", out)
    refused(result, op, line_of(users, "# the line of the op"), "or export to a target that has it")


# ------------------------------------------------------------------------------------------ damaged artifacts


def spoil_byte(artifact: Path) -> None:
    model = max((p for p in artifact.glob("model.*/**/*") if p.is_file()), key=lambda p: p.stat().st_size, default=None)
    path = model or next(artifact.glob("model.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(artifact: Path) -> None:
    path = artifact / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove(artifact: Path) -> None:
    model = next(artifact.glob("model.*"))
    shutil.rmtree(model) if model.is_dir() else model.unlink()


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(artifact: Path) -> None:
        path = artifact / "edgekit.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return damage


def cut_manifest(artifact: Path) -> None:
    path = artifact / "edgekit.json"
    path.write_bytes(path.read_bytes()[:200])


OUTSIDE = {"bytes": 1, "sha256": "0" * 64}
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of the model": (spoil_byte, "SHA-256 differs"),
    "the golden vectors cut": (cut, "truncated or changed"),
    "the model removed": (remove, "lacks its file model."),
    "the manifest cut": (cut_manifest, "cannot be read as a manifest"),
    "the manifest a list": (lambda a: (a / "edgekit.json").write_text("[]"), "cannot be read as a manifest"),
    "the manifest not text": (lambda a: (a / "edgekit.json").write_bytes(b"\xff\xfe{"), "cannot be read as a manifest"),
    "another schema": (manifest(lambda m: m.update(schema=2)), "has schema 2; this edgekit reads 1"),
    "a field missing": (manifest(lambda m: m.pop("inputs")), "cannot be read as a manifest"),
    "a number for a name": (manifest(lambda m: m.update(inputs=3)), "cannot be read as a manifest"),
    "no inputs": (manifest(lambda m: m.update(inputs=[])), "names no inputs or no outputs"),
    "no outputs": (manifest(lambda m: m.update(outputs=[])), "names no inputs or no outputs"),
    "std of zero": (manifest(lambda m: m["preprocess"].update(std=[0, 0, 0])), "cannot be read as a manifest"),
    "no files": (manifest(lambda m: m.update(files={})), "lists no file"),
    "no golden vectors": (manifest(lambda m: m["files"].pop("golden.safetensors")), "lists no file golden.safetensors"),
    "a file above": (manifest(lambda m: m["files"].update({"../../secret": OUTSIDE})), "names a file outside it"),
    "a file elsewhere": (manifest(lambda m: m["files"].update({"/etc/passwd": OUTSIDE})), "names a file outside it"),
    "labels elsewhere": (manifest(lambda m: m.update(labels="../../secret")), "lists no file ../../secret"),
    "a hash of another file": (
        manifest(lambda m: [f.update(sha256="0" * 64) for f in m["files"].values()]),
        "SHA-256 differs",
    ),
    "an unknown target": (manifest(lambda m: m.update(target="tensorrt")), "unknown target 'tensorrt'"),
    "an unknown precision": (manifest(lambda m: m.update(precision="fp8")), "precision 'fp8'"),
    "another shape": (manifest(lambda m: m["inputs"][0].update(shape=[1, 3, 32, 32])), "shapes in the manifest"),
    "an output too many": (manifest(lambda m: m["outputs"].append(m["outputs"][0])), "shapes in the manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused(cli: Cli, artifact: Copier, photo: Path, damage: str) -> None:
    spoil, said = DAMAGES[damage]
    for target in ("onnx", "coreml") if damage in ("one bit of the model", "the model removed") else ("onnx",):
        folder = artifact(target)
        spoil(folder)
        refused(cli("verify", folder), said)
    if said not in ("precision 'fp8'", "shapes in the manifest"):  # `predict` needs neither
        refused(cli("predict", folder, photo), said)


def test_what_is_no_artifact_is_refused(cli: Cli, tmp_path: Path, photo: Path) -> None:
    refused(cli("verify", tmp_path), "is not an artifact: it has no edgekit.json", "edgekit export")
    refused(cli("inspect", photo), "is not an artifact: it is not a folder")
    refused(cli("predict", tmp_path / "no", photo), "is not an artifact: it does not exist")


EACH = """
import sys
from edgekit.cli import main

for folder in sys.argv[1:]:
    sys.argv = ["edgekit", "verify", folder]
    try:
        main()
    except SystemExit as stopped:
        print(stopped.code, flush=True)
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_file_that_its_runtime_cannot_read_is_refused_though_its_hash_fits(
    artifact: Copier, tmp_path: Path, target: str
) -> None:
    folders = []
    for name, spoil in (
        ("half", lambda c: c[: len(c) // 2]),
        ("empty", lambda c: b""),
        ("text", lambda c: b"no" * 999),
    ):
        folder = artifact(target).rename(tmp_path / name)
        path = max(model_files(folder), key=lambda p: p.stat().st_size)
        path.write_bytes(spoil(path.read_bytes()))
        reseal(folder)
        folders.append(folder)
    # In a process of its own: a runtime that crashes must not take the tests with it.
    result = subprocess.run([sys.executable, "-c", EACH, *folders], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result
    assert result.stdout == "2\n2\n2\n"
    errors = f"\n{result.stderr}".split("\nerror: ")[1:]
    for folder, error in zip(folders, errors, strict=True):
        assert "cannot run" in error
        assert str(folder) in error
        assert "Export the artifact again" in error


# ------------------------------------------------------------------------------------------ images


def cut_photo(photo: Path) -> bytes:
    return photo.read_bytes()[:5000]


NO_IMAGES: dict[str, Callable[[Path], bytes]] = {
    "text": lambda photo: b"this is not a photo",
    "empty": lambda photo: b"",
    "cut": cut_photo,
    "cut.png": lambda photo: b"\x89PNG\r\n\x1a\n" + bytes(20),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_an_image_that_is_none_is_refused(cli: Cli, artifact: Copier, photo: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(NO_IMAGES[name](photo))
    refused(cli("predict", artifact(), photo, path), f"{path} is not an image that can be read", "Give a .jpg or .png")
    refused(cli("verify", artifact("tflite"), "--images", path), f"{path} is not an image that can be read")


def test_a_folder_is_no_image(cli: Cli, artifact: Copier, tmp_path: Path) -> None:
    refused(cli("predict", artifact(), tmp_path), f"there is no image {tmp_path}")


def test_an_image_of_absurd_size_is_refused(cli: Cli, artifact: Copier, tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    refused(cli("predict", artifact(), tmp_path / "huge.png"), "is too large to be a photo", "Scale it down first")


# ------------------------------------------------------------------------------------------ where it is written


def test_what_exists_already_is_not_replaced_without_force(cli: Cli, tiny: str, tmp_path: Path) -> None:
    command = ("export", "-m", tiny, "-t", "onnx", "--imgsz", "64", "-o", tmp_path, "--no-verify")
    mine = tmp_path / "net-onnx-fp32"
    mine.mkdir()
    (mine / "thesis.txt").write_text("irreplaceable", encoding="utf-8")
    refused(cli(*command), f"{mine} exists already", "--force")
    assert (mine / "thesis.txt").read_text(encoding="utf-8") == "irreplaceable"
    assert cli(*command, "--force").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net-onnx-fp32"]
    assert not (mine / "thesis.txt").exists()
    refused(cli(*command, "--seed", "1"), f"{mine} exists already", "--force")


def test_repeated_interrupts_leave_nothing_of_what_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.artifacts import atomic_folder

    destination = tmp_path / "net"
    (destination / "old").mkdir(parents=True)
    remove, presses = shutil.rmtree, iter(range(2))

    def interrupted(*arguments: object, **options: object) -> None:
        if next(presses, None) is not None:
            raise KeyboardInterrupt
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(destination) as folder:
        (folder / "new").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["net", "net/new"]


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_what_a_users_code_prints_is_no_error_whatever_the_locale(tmp_path: Path, debug: list[str]) -> None:
    text = "from torch import nn\nprint('caf\\u00e9 \\udcff')\ndef net(): return nn.Conv2d(3, 4, 3)\n"
    (tmp_path / "loud.py").write_text(text, encoding="utf-8")
    command = ("export", "-m", f"{tmp_path}/loud.py:net", "-t", "onnx", "--imgsz", "16", "-o", tmp_path / "out", *debug)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(process(*command), env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result


def test_the_same_command_again_succeeds_with_the_same_bytes(cli: Cli, tiny: str, tmp_path: Path) -> None:
    command = ("export", "-m", tiny, "-t", "onnx", "--imgsz", "64", "-o", tmp_path)
    contents = []
    for _ in range(2):
        assert cli(*command).code == 0
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "net-onnx-fp32").iterdir()})
        assert [p.name for p in tmp_path.iterdir()] == ["net-onnx-fp32"]
    assert contents[0] == contents[1]


def test_a_file_where_a_folder_should_be_is_refused(cli: Cli, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    result = cli("export", "-m", tiny, "-t", "onnx", "--imgsz", "64", "-o", tmp_path / "file" / "deeper")
    refused(result, f"cannot write to {tmp_path}/file/deeper", "Give another folder with -o")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("size=64k")`: a real disk of that size."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("a small disk is needed and there is no `mount` here")
        if result.returncode:
            pytest.skip(f"a small disk is needed and this user may not mount one: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", ["size=16k", "size=64k,nr_inodes=2"])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(
    cli: Cli, tiny: str, disk: Callable[[str], Path], options: str, target: str
) -> None:
    folder = disk(options)
    result = cli("export", "-m", tiny, "-t", target, "--imgsz", "64", "-o", folder / "out")
    refused(result, f"no space left on the disk of {folder}", "Free some space", code=3)
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------ interrupts


def start(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(
        process(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_an_interrupted_export_leaves_nothing(tiny: str, tmp_path: Path, number: signal.Signals) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    command = ("export", "-m", tiny, "-t", "executorch", "--imgsz", "64", "-o", out, "--json")
    running = start(*command, folder=temporary)
    wait_for(lambda: list(out.glob(".net-executorch-fp32.*")), running)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=300)
    assert (running.returncode, stdout) == (130, ""), stderr
    assert stderr.startswith("error: interrupted")
    assert "Traceback" not in stderr
    assert not out.exists()
    assert [p for p in temporary.iterdir() if not p.name.startswith("torchinductor")] == []


STUBBORN = """
import time
from pathlib import Path


def net():
    try:
        Path(__file__).with_name("waiting").touch()
        time.sleep(600)
    except BaseException:  # as some exporters do
        pass
    time.sleep(600)
"""


def test_an_interrupt_that_a_library_swallows_still_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN, encoding="utf-8")
    running = start("export", "-m", f"{tmp_path}/stubborn.py:net", "-o", tmp_path / "out", folder=tmp_path)
    wait_for((tmp_path / "waiting").exists, running)
    running.send_signal(signal.SIGHUP)
    _, stderr = running.communicate(timeout=300)
    assert (running.returncode, stderr.startswith("error: interrupted")) == (130, True), stderr


# ------------------------------------------------------------------------------------------ missing packages


def run_without(packages: Iterable[str], folder: Path, *arguments: str | Path) -> Result:
    """A command where importing `packages` fails, as it does where they are not installed or broken."""
    for package in packages:
        stub = folder / "stubs" / package
        stub.mkdir(parents=True)
        (stub / "__init__.py").write_text(f"raise ImportError('No module named {package!r}')\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder / "stubs")}
    result = subprocess.run(process(*arguments), env=environment, capture_output=True, text=True, check=False)
    return Result(result.returncode, result.stdout, result.stderr)


PACKAGES = {"onnx": "onnxruntime", "coreml": "coremltools", "tflite": "litert_torch", "executorch": "executorch"}


@pytest.mark.parametrize(("target", "package"), PACKAGES.items())
def test_a_missing_package_is_said_with_what_to_type(tiny: str, tmp_path: Path, target: str, package: str) -> None:
    out = tmp_path / "out"
    result = run_without([package], tmp_path, "export", "-m", tiny, "-t", target, "--imgsz", "64", "-o", out)
    refused(result, package, f"target {target} needs", f"pip install 'edgekit[{target}]'", code=3)
    assert not out.exists()


def test_where_every_package_is_missing_each_target_is_told_its_own(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_without(PACKAGES.values(), tmp_path, "export", "-m", tiny, "-t", "all", "--imgsz", "64", "-o", out)
    refused(result, "4 of 4 targets failed", *(f"pip install 'edgekit[{t}]'" for t in TARGETS), code=3)
    assert not out.exists()


def test_a_missing_package_fails_its_own_target_alone(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("export", "-m", tiny, "-t", "onnx,coreml", "--imgsz", "64", "-o", out, "--no-verify")
    result = run_without(["onnxruntime"], tmp_path, *arguments)
    assert result.code == 1
    assert "error: 1 of 2 targets failed: onnx" in result.err
    assert "pip install 'edgekit[onnx]'" in result.err
    assert [p.name for p in out.iterdir()] == ["net-coreml-fp32"]
    assert "net-coreml-fp32" in result.out


def test_doctor_names_the_remedy_for_what_does_not_work(tmp_path: Path) -> None:
    result = run_without(PACKAGES.values(), tmp_path, "doctor", "--json")
    assert result.code == 3
    health = {h["name"]: h for h in json.loads(result.out)}
    for target in TARGETS:
        assert health[target]["works"] is False
        assert health[target]["remedy"] == f"Type: pip install 'edgekit[{target}]'"
    assert health["host"]["works"]


# ------------------------------------------------------------------------------------------ data for an evaluation


@pytest.mark.parametrize(
    ("labels", "said"),
    [(None, "has no labels"), ([0, 10], "the data has a label 10"), ([-1, 0], "the data has a label -1")],
)
def test_data_that_does_not_fit_the_model_is_refused(
    cli: Cli, artifact: Copier, tmp_path: Path, labels: list[int] | None, said: str
) -> None:
    arrays = {"images": np.zeros((2, 64, 64, 3), np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    np.savez(tmp_path / "set.npz", **arrays)  # pyright: ignore[reportArgumentType]
    refused(cli("evaluate", artifact(), "--data", tmp_path / "set.npz"), said)


def test_python_code_that_a_manifest_names_runs_only_when_it_is_named(
    cli: Cli, artifact: Copier, tmp_path: Path, photo: Path
) -> None:
    folder = artifact("onnx")
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef net(): ...\n", encoding="utf-8")
    manifest = json.loads((folder / "edgekit.json").read_text(encoding="utf-8"))
    manifest["request"]["model"] = f"{trap}:net"
    (folder / "edgekit.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(cli("verify", folder, "--images", photo), "Python code", "--model")
    (tmp_path / "ant").mkdir()
    shutil.copy(photo, tmp_path / "ant")
    cli("evaluate", folder, "--data", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_changes_its_own_buffers_is_refused(cli: Cli, tmp_path: Path) -> None:
    text = (
        "import torch\nfrom torch import nn\n\nclass Counter(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('calls', torch.zeros(1))\n"
        "    def forward(self, x):\n        self.calls.add_(1)\n        return x * self.calls\n"
    )
    (tmp_path / "counter.py").write_text(text, encoding="utf-8")
    refused(
        cli("export", "-m", f"{tmp_path / 'counter.py'}:Counter", "-o", tmp_path / "out"), "calls", "its own buffers"
    )
    assert not (tmp_path / "out").exists()
