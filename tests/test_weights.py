"""`edgekit weights import`: every kind of file, strictly, and nothing written that `--weights` would not take."""

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import edgekit
from edgekit.errors import BadInput, EnvironmentProblem, UnknownName, WeightsMismatch
from edgekit.models import ZOO, create_model, read_state
from edgekit.models._weights import read_checkpoint
from edgekit.weights import import_weights
from tests.conftest import Cli, Result
from tests.zoo import golden, relative

MODEL, CLASSES = "mobilenet-v2", 10
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of the model with every entry drawn anew."""
    generator = torch.Generator().manual_seed(1)
    own = create_model(MODEL, num_classes=CLASSES).state_dict()
    return {k: torch.rand(v.shape, generator=generator) for k, v in own.items() if v.is_floating_point()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def npz(state: State, path: Path) -> None:
    np.savez(path, **{k: v.numpy() for k, v in state.items()})


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "w.safetensors": lambda s, p: save_file(s, p),
    "w.npz": npz,
    "w.pth": lambda s, p: torch.save(s, p),
    "w.pt": lambda s, p: torch.save({"model": s, "epoch": 3}, p),
    "w.th": lambda s, p: torch.save({"state_dict": {f"module.{k}": v for k, v in s.items()}, "best_prec1": 9.5}, p),
    "w.pth.tar": lambda s, p: torch.save({"state_dict": s, "optimizer": {"lr": 0.1}}, p),
    "w.ckpt": lambda s, p: torch.save({"state_dict": s, "global_step": 3}, p),
}


def run(cli: Cli, source: str | Path, out: str | Path, *more: str) -> Result:
    return cli("weights", "import", "-m", MODEL, "--from", source, "-o", out, "--num-classes", CLASSES, *more)


def refused(result: Result, *said: str, code: int = 2) -> None:
    assert result.code == code, result.err
    assert result.out == ""
    assert "error: " in result.err
    assert "Traceback" not in result.err
    for text in said:
        assert text in result.err, result.err


def same(path: Path, state: State) -> bool:
    written = load_file(path)
    return written.keys() == state.keys() and all(torch.equal(written[k], state[k]) for k in state)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_read_whole(folder: Path, state: State, name: str) -> None:
    WRITERS[name](state, folder / name)
    done = import_weights(MODEL, folder / name, folder / "o.safetensors", num_classes=CLASSES)
    assert same(done.path, state)
    assert done.sha256 == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert (done.tensors, done.bytes, done.notes) == (len(state), done.path.stat().st_size, ())
    assert done.parameters == sum(p.numel() for p in create_model(MODEL, num_classes=CLASSES).parameters())
    with safe_open(done.path, "pt") as file:
        assert file.metadata() == {"edgekit_model": MODEL}
    loaded = create_model(MODEL, num_classes=CLASSES, weights=done.path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_the_command_says_what_it_wrote_and_what_to_type_next(cli: Cli, folder: Path, state: State) -> None:
    save_file(state, "a b.safetensors")
    result = run(cli, "a b.safetensors", "new/folder/o w.safetensors")
    assert result.code == 0, result.err
    line, following = result.out.splitlines()
    digest = hashlib.sha256((folder / "new/folder/o w.safetensors").read_bytes()).hexdigest()
    assert line == f"new/folder/o w.safetensors  262 tensors · 2,236,682 parameters · 9.1 MB · sha256 {digest}"
    assert following == (
        "Next: edgekit export -m mobilenet-v2 --weights 'new/folder/o w.safetensors' --num-classes 10 -t all"
    )
    assert stat.S_IMODE((folder / "new/folder/o w.safetensors").stat().st_mode) == 0o666 & ~_umask()
    again = run(cli, "a b.safetensors", "p.safetensors", "--json")
    values = json.loads(again.out)
    assert values == {
        "model": MODEL,
        "path": "p.safetensors",
        "tensors": 262,
        "parameters": 2_236_682,
        "bytes": (folder / "p.safetensors").stat().st_size,
        "sha256": digest,
        "notes": [],
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_was_imported_exports_and_imports_again_as_it_is(cli: Cli, folder: Path, shared: Path) -> None:
    """The published file has batch norm folded into convolutions; ours has it apart."""
    published = shared / "data" / "mobilenetv2_imagenet.safetensors"
    assert cli("weights", "import", "-m", MODEL, "--from", published, "-o", "o.safetensors").code == 0
    assert cli("weights", "import", "-m", MODEL, "--from", "o.safetensors", "-o", "p.safetensors").code == 0
    assert (folder / "o.safetensors").read_bytes() == (folder / "p.safetensors").read_bytes()
    image = torch.randn(1, 3, 32, 32)
    a, b = (create_model(MODEL, weights=w)(image) for w in (published, folder / "o.safetensors"))
    assert torch.equal(a, b)
    made = cli("export", "-m", MODEL, "--weights", "o.safetensors", "--imgsz", "32", "-t", "onnx", "-o", "artifacts")
    assert made.code == 0, made.err


def test_the_library_door_is_public() -> None:
    assert edgekit.import_weights is import_weights
    with pytest.raises(UnknownName, match="mobilenet-v2"):
        edgekit.import_weights("mobilenetv2", "a.pth", "b.safetensors")


# ----------------------------------------------------------------------------- what does not fit the model


def test_renamed_missing_and_misshapen_keys_are_all_named(cli: Cli, folder: Path, state: State) -> None:
    wrong = {("classifier.1.b" if k == "classifier.1.bias" else k): v for k, v in state.items()}
    wrong["features.0.0.weight"] = torch.zeros(32, 3, 5, 5)
    save_file(wrong, "w.safetensors")
    refused(
        run(cli, "w.safetensors", "o.safetensors"),
        "1 missing: classifier.1.bias",
        "1 unexpected: classifier.1.b\n",
        "1 of other shape: features.0.0.weight is (32, 3, 5, 5), not (32, 3, 3, 3)",
    )
    refused(cli("weights", "import", "-m", MODEL, "--from", "w.safetensors", "-o", "o.safetensors"), "not (1000, 1280)")
    assert os.listdir(folder) == ["w.safetensors"]


def test_every_key_that_does_not_fit_is_named(cli: Cli, folder: Path, state: State) -> None:
    save_file({f"backbone.{k}": v for k, v in state.items()}, "w.safetensors")
    result = run(cli, "w.safetensors", "o.safetensors")
    refused(result, "262 missing: ", "262 unexpected: backbone.classifier.1.bias, ")
    lines = result.err.splitlines()
    assert all(f"note: missing: {k}" in lines and f"note: unexpected: backbone.{k}" in lines for k in state)


def test_values_that_are_no_weights_are_refused(cli: Cli, folder: Path, state: State) -> None:
    save_file(state | {"classifier.1.bias": torch.zeros(CLASSES, dtype=torch.uint8)}, "q.safetensors")
    refused(run(cli, "q.safetensors", "o.safetensors"), "classifier.1.bias as torch.uint8", "float")
    save_file(state | {"classifier.1.bias": torch.tensor([float("nan")] * 3 + [0.0] * 7)}, "n.safetensors")
    refused(run(cli, "n.safetensors", "o.safetensors"), "3 values in classifier.1.bias")
    assert not (folder / "o.safetensors").exists()


def test_half_precision_is_written_as_float32_and_said(cli: Cli, folder: Path, state: State) -> None:
    save_file({k: v.to(torch.bfloat16) for k, v in state.items()}, "h.safetensors")
    result = run(cli, "h.safetensors", "o.safetensors")
    assert result.code == 0
    assert "note: bfloat16 values were written as float32" in result.err
    assert same(folder / "o.safetensors", {k: v.to(torch.bfloat16).float() for k, v in state.items()})


# ------------------------------------------------------------------------------------ what a file may hold


def test_of_two_models_in_a_file_the_plain_one_is_taken_and_said(cli: Cli, folder: Path, state: State) -> None:
    average = {k: v + 1 for k, v in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average, "epoch": 3}, "w.pth")
    plain = run(cli, "w.pth", "o.safetensors")
    assert plain.code == 0
    assert "note: w.pth has state_dict and the averaged state_dict_ema; state_dict was taken. See --entry." in plain.err
    assert same(folder / "o.safetensors", state)
    assert run(cli, "w.pth", "p.safetensors", "--entry", "state_dict_ema").err == ""
    assert same(folder / "p.safetensors", average)
    refused(
        run(cli, "w.pth", "q.safetensors", "--entry", "ema"), "has no entry 'ema'", "state_dict, state_dict_ema, epoch"
    )
    refused(run(cli, "w.pth", "q.safetensors", "--entry", "epoch"), "no state_dict")
    refused(run(cli, "o.safetensors", "q.safetensors", "--entry", "ema"), "Leave --entry out")


class Trap:
    """Unpickling this makes a folder: proof that code ran."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("sprung",))


def test_nothing_is_unpickled(cli: Cli, folder: Path, state: State) -> None:
    torch.save({"state_dict": state, "hook": Trap()}, "w.pth")
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez("w.npz", **{k: v.numpy() for k, v in state.items()}, hook=trap)
    np.save("bare.npy", trap)
    os.rename("bare.npy", "bare.npz")
    for name in ("w.pth", "w.npz", "bare.npz"):
        refused(run(cli, name, "o.safetensors"), f"{name} cannot be read as weights")
    assert not Path("sprung").exists()
    np.load("w.npz", allow_pickle=True)["hook"]  # the trap is a real one
    assert Path("sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_damaged_files_are_refused_in_one_line(cli: Cli, folder: Path, state: State, name: str, damage: str) -> None:
    WRITERS[name](state, folder / name)
    content = bytearray((folder / name).read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[20:60] = bytes(byte ^ 255 for byte in content[20:60])
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"these are not weights")
    (folder / name).write_bytes(content)
    refused(run(cli, name, "o.safetensors"), f"{name} cannot be read as weights: ")
    assert os.listdir(folder) == [name]


def test_a_damaged_array_in_an_npz_is_noticed(cli: Cli, folder: Path, state: State) -> None:
    npz(state, folder / "w.npz")
    content = bytearray((folder / "w.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "w.npz").write_bytes(content)
    refused(run(cli, "w.npz", "o.safetensors"), "w.npz cannot be read as weights: Bad CRC-32")


def test_files_that_say_they_are_huge_are_refused_before_they_are_unpacked(cli: Cli, folder: Path) -> None:
    """A zip that unpacks to 300 times its size, and an array whose header claims terabytes."""
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(100 << 20))
    refused(
        run(cli, "bomb.npz", "o.safetensors"),
        "bomb.npz cannot be read as weights: it would unpack to 104,857,600 bytes",
    )
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile("claim.npz", "w") as file:
        file.writestr("a.npy", header.getvalue() + bytes(64))
    refused(run(cli, "claim.npz", "o.safetensors"), "claim.npz cannot be read as weights: ")
    torch.save({"classifier.1.bias": torch.zeros(1).expand(1 << 40)}, "strides.pth")
    refused(run(cli, "strides.pth", "o.safetensors"), "classifier.1.bias is (1099511627776,), not (10,)")


def test_arrays_of_other_byte_order_and_precision_are_numbers_all_the_same(folder: Path, state: State) -> None:
    arrays = {k: v.numpy().astype(">f8") for k, v in state.items()}
    np.savez_compressed(
        "w.npz", **arrays | {"classifier.1.weight:0": np.asfortranarray(arrays.pop("classifier.1.weight"))}
    )
    done = import_weights(MODEL, "w.npz", "o.safetensors", num_classes=CLASSES)
    assert same(done.path, state)
    assert done.notes == ("float64 values were written as float32",)
    np.savez("text.npz", a=np.array(["no number"]))
    with pytest.raises(BadInput, match=r"text.npz cannot be read as weights: .*numpy.str_"):
        read_state(Path("text.npz"))


# ------------------------------------------------------------------------------------------ paths and names


def test_paths_that_are_no_weights_file_say_why(cli: Cli, folder: Path) -> None:
    (folder / "saved_model").mkdir()
    (folder / "w.h5").write_bytes(b"")
    refused(run(cli, "no.pth", "o.safetensors"), "there is no weights file no.pth")
    refused(run(cli, "saved_model", "o.safetensors"), "saved_model is a folder", "ends in .index")
    refused(run(cli, "w.h5", "o.safetensors"), "w.h5 is not a weights file that edgekit reads", ".npz")
    refused(cli("weights", "import", "-m", "file.py:net", "--from", "w.h5", "-o", "o.safetensors"), "unknown model")
    refused(cli("weights", "import", "-m", MODEL, "-o", "o.safetensors"), "--from")


def test_destinations_that_cannot_be_are_refused_before_anything_is_read(cli: Cli, folder: Path, state: State) -> None:
    save_file(state, "w.safetensors")
    (folder / "d.safetensors").mkdir()
    (folder / "link.safetensors").symlink_to("w.safetensors")
    before = (folder / "w.safetensors").read_bytes()
    refused(run(cli, "no.pth", "o.pth"), "-o o.pth is no name of a safetensors file", "-o o.safetensors")
    refused(run(cli, "w.safetensors", "d.safetensors"), "d.safetensors is a folder")
    for same_file in ("w.safetensors", "./w.safetensors", "link.safetensors"):
        refused(run(cli, "w.safetensors", same_file, "--force"), "--from and -o are the same file")
    refused(run(cli, "w.safetensors", "w.safetensors/o.safetensors"), "cannot write w.safetensors/o.safetensors")
    assert (folder / "w.safetensors").read_bytes() == before


def test_nothing_is_overwritten_without_force(cli: Cli, folder: Path, state: State) -> None:
    save_file(state, "w.safetensors")
    (folder / "o.safetensors").write_bytes(b"mine")
    refused(run(cli, "w.safetensors", "o.safetensors"), "o.safetensors is there already", "--force")
    assert (folder / "o.safetensors").read_bytes() == b"mine"
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    refused(run(cli, "other.safetensors", "o.safetensors", "--force"), "another model")
    assert (folder / "o.safetensors").read_bytes() == b"mine"
    assert run(cli, "w.safetensors", "o.safetensors", "--force").code == 0
    assert same(folder / "o.safetensors", state)


def test_a_failure_while_writing_leaves_nothing(folder: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state, "w.safetensors")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentProblem, match="no space left"):
        import_weights(MODEL, "w.safetensors", "a/b/o.safetensors", num_classes=CLASSES)
    assert os.listdir(folder) == ["w.safetensors"]


def test_a_converter_that_changes_its_own_names_is_a_defect_and_writes_nothing(
    folder: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from edgekit import weights as room

    scaled = replace(ZOO[MODEL], convert_state=lambda published: {k: v * 2 for k, v in published.items()})
    monkeypatch.setattr(room, "ZOO", {MODEL: scaled})
    save_file(state, "w.safetensors")
    with pytest.raises(RuntimeError, match="changes weights under its own names"):
        import_weights(MODEL, "w.safetensors", "o.safetensors", num_classes=CLASSES)
    assert os.listdir(folder) == ["w.safetensors"]


# -------------------------------------------------------------------------------------- TensorFlow checkpoints


def test_a_tensorflow_checkpoint_without_tensorflow_says_what_to_do(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)  # what an import of it then finds
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        (folder / name).write_bytes(b"")
    for name in ("model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        refused(
            run(cli, name, "o.safetensors"),
            "reading the TensorFlow checkpoint model.ckpt needs the package 'tensorflow'",
            "pip install tensorflow",
            ".npz",
            code=3,
        )
    refused(
        cli("export", "-m", MODEL, "--weights", "model.ckpt", "-t", "onnx"),
        "edgekit weights import -m MODEL --from model.ckpt -o weights.safetensors",
    )


def test_variables_in_an_npz_may_be_named_as_tensorflow_stores_them(folder: Path) -> None:
    value = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = (
        f"net/w..0.S1{value}", "b:0", "b/Adam", "b/Adam_1", "net/Adam", "_CHECKPOINTABLE_OBJECT_GRAPH", "global_step",
        f"save_counter{value}", f"optimizer/lr{value}", f"net/w..0.S1/.OPTIMIZER_SLOT/optimizer/m{value}",
    )  # fmt: skip
    np.savez("w.npz", **{name: np.ones(2, np.float32) for name in names})
    checkpoint = read_checkpoint(Path("w.npz"))
    assert set(checkpoint.tensors) == {"net/w.0/1", "b", "net/Adam"}
    assert checkpoint.notes == (
        "left out what belongs to training: _CHECKPOINTABLE_OBJECT_GRAPH, b/Adam, b/Adam_1 and 4 more",
    )


@pytest.mark.filterwarnings("ignore")  # tensorflow's own
@pytest.mark.parametrize("kind", ["saver", "objects"])
def test_tensorflow_checkpoints_are_read(folder: Path, state: State, kind: str) -> None:
    tf = pytest.importorskip("tensorflow", reason="optional: TensorFlow checkpoints are read through tensorflow")
    if kind == "saver":
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            variables = {k: tf.compat.v1.Variable(v.numpy()) for k, v in state.items()}
            step = tf.compat.v1.Variable(np.int64(3))
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver({**variables, "global_step": step}).save(session, "tf/model.ckpt")
        prefix = "tf/model.ckpt"
    else:
        tracked = {k: tf.Variable(v.numpy()) for k, v in state.items()}
        prefix = tf.train.Checkpoint(**tracked).save("tf/model.ckpt")
    for source in (prefix, f"{prefix}.index"):
        done = import_weights(MODEL, source, "o.safetensors", num_classes=CLASSES, force=True)
        assert same(done.path, state)
        assert "left out what belongs to training" in done.notes[0]
    data = next((folder / "tf").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read as weights"):
        import_weights(MODEL, prefix, "p.safetensors", num_classes=CLASSES)


def test_weights_mismatch_is_what_a_program_catches(folder: Path, state: State) -> None:
    save_file({"a": torch.zeros(1)}, "w.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        import_weights(MODEL, "w.safetensors", "o.safetensors")
    assert len(caught.value.missing) == len(state)


def test_imported_weights_know_their_model(cli: Cli, folder: Path, state: State) -> None:
    """mobilenet-v2 and its symmetric twin have the same names and shapes, and other paddings."""
    save_file(state, "w.safetensors")
    assert run(cli, "w.safetensors", "o.safetensors").code == 0
    twin = f"{MODEL}-symmetric"
    options = ("--num-classes", str(CLASSES), "-t", "onnx", "-o", folder / "out")
    refused(cli("export", "-m", twin, "--weights", "o.safetensors", *options), f"weights of '{MODEL}', not of '{twin}'")
    assert not (folder / "out").exists()


PUBLISHED = [
    ("moat", "tiny_moat_0_256", "tiny-moat-0"),
    ("mobileformer", "26m", "mobile-former-26m"),
    ("micronet", "m1", "micronet-m1"),
    ("slab", "deit_tiny", "slab-deit-tiny"),
    ("slab", "swin_tiny_prepbn", "swin-tiny-prepbn"),
    ("lvt", "lvt", "lvt-gap"),
]


@pytest.mark.parametrize(("family", "record", "model"), PUBLISHED)
@torch.no_grad()
def test_published_checkpoints_import(
    shared: Path, cli: Cli, tmp_path: Path, family: str, record: str, model: str
) -> None:
    """From the published names, and layouts, to a file that `--weights` takes and that gives the published logits."""
    published = golden(shared, family, record)
    source, out = tmp_path / f"w{'.npz' if family == 'moat' else '.pth'}", tmp_path / "w.safetensors"
    if family == "moat":
        np.savez(source, **{k: v.numpy() for k, v in published.state.items()})
    else:
        torch.save({"model": {f"module.{k}": v for k, v in published.state.items()}}, source)
    result = cli("weights", "import", "-m", model, "--from", source, "-o", out)
    assert result.code == 0, result.err
    assert relative(create_model(model, weights=out)(published.image), published.logits) < 2e-5
    renamed = dict(published.state)
    first = next(iter(renamed))
    renamed[f"{first}_"] = renamed.pop(first)
    torch.save(renamed, tmp_path / "r.pth")
    out = tmp_path / "r.safetensors"
    refused(cli("weights", "import", "-m", model, "--from", tmp_path / "r.pth", "-o", out), f"{first}_")
