"""The command line as the contract has it: names, exit codes, JSON shapes, and silence where nothing needs saying."""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgekit
from tests.conftest import TARGETS, Cli, Exporter, process

Copier = Callable[..., Path]
COMMANDS = (
    "models", "export", "quantize", "train", "verify", "evaluate", "predict", "profile", "inspect", "doctor",
)  # fmt: skip
MODELS = ("lvt", "lvt-gap", "mobilenet-v2")


def document(cli: Cli, *arguments: str | Path) -> Any:
    """What a command with --json prints: one document on stdout, nothing on stderr."""
    result = cli(*arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


# ------------------------------------------------------------------------------------------ help


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert (result.code, result.err) == (0, "")
    assert all(re.search(rf"^ +{name} ", result.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    for flag in ("--help", "-h"):
        result = cli(command, flag)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: edgekit {command} ")


def test_no_arguments_is_a_question_for_help(cli: Cli) -> None:
    result = cli()
    assert result.code == 2
    assert "Usage: edgekit" in result.out + result.err


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version").out == f"edgekit {version('edgekit')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["--version"]])
def test_help_is_quick_and_imports_no_torch(arguments: list[str]) -> None:
    heavy = "'torch', 'numpy', 'PIL', 'coremltools', 'executorch', 'onnx', 'litert_torch', 'sklearn'"
    script = (
        "import sys; from edgekit.cli import main\n"
        f"sys.argv = ['edgekit', *{arguments}]\n"
        "try: main()\n"
        f"finally: print(sorted({{{heavy}}} & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        after = os.times()
        # Of the processor, for others may have it meanwhile.
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.stderr == "[]\n"
    assert min(seconds) < 1  # 0.3 on an idle machine


# ------------------------------------------------------------------------------------------ models


def test_models_lists_the_zoo(cli: Cli) -> None:
    cards = document(cli, "models")
    assert {c["name"] for c in cards} >= set(MODELS)
    text = cli("models").out
    assert all(name in text for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_card_has_the_contracts_fields(cli: Cli, name: str) -> None:
    card = document(cli, "models", name)
    assert card["name"] == name
    assert card["family"]
    assert card["input"] == [3, 224, 224]
    assert 0 < card["params"] < card["macs"]
    assert card["paper"].startswith("https://")
    assert card["licence"]
    assert isinstance(card["weights"], list)
    assert card in document(cli, "models")
    assert f"{card['params']:,}" in cli("models", name).out


# ------------------------------------------------------------------------------------------ export

FIELDS = {
    "schema",
    "edgekit",
    "name",
    "model",
    "weights",
    "target",
    "precision",
    "files",
    "inputs",
    "outputs",
    "preprocess",
    "labels",
    "calibration",
    "delegation",
    "verification",
    "environment",
    "path",
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export_prints_one_document_a_manifest_for_each_target(export_tiny: Exporter, precision: str) -> None:
    exported = export_tiny(precision)
    manifests = json.loads(exported.out)
    assert [m["target"] for m in manifests] == list(TARGETS)
    for m in manifests:
        assert set(m) >= FIELDS
        folder = Path(m.pop("path"))
        assert folder == exported.folder / f"net-{m['target']}-{precision}"
        m.pop("seconds")
        assert json.loads((folder / "edgekit.json").read_text(encoding="utf-8")) == m


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_says_what_a_phone_needs(export_tiny: Exporter, tiny: str, target: str) -> None:
    m = json.loads((export_tiny().artifact(target) / "edgekit.json").read_text(encoding="utf-8"))
    assert (m["schema"], m["name"], m["model"], m["target"], m["precision"]) == (1, "net", tiny, target, "fp32")
    assert m["edgekit"] == version("edgekit")
    (image,), (logits,) = m["inputs"], m["outputs"]
    assert image["dtype"] == logits["dtype"] == "float32"
    assert logits["shape"] == [1, 10]
    nhwc = target == "tflite"
    assert image["layout"] == ("NHWC" if nhwc else "NCHW")
    assert image["shape"] == ([1, 64, 64, 3] if nhwc else [1, 3, 64, 64])
    assert m["preprocess"] == {
        "resize": 73,
        "crop": [64, 64],
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": 1 / 255,
        "channel_order": "RGB",
    }
    assert m["calibration"] == {"kind": "none", "source": "", "samples": 0, "seed": 0}
    assert m["environment"].keys() >= {"python", "torch"}
    (proof,) = m["verification"]
    assert proof.keys() >= {"against", "samples", "max_abs_error", "sqnr_db", "top1_agreement", "passed"}
    delegation = m["delegation"]
    assert delegation["backend"]
    assert delegation["delegated"] > 0
    for op in delegation["fallback"]:
        assert op["op"]
        assert op["reason"]
        assert op["count"] > 0


def test_a_fallback_op_names_the_users_source_line(export_tiny: Exporter) -> None:
    m = json.loads((export_tiny().artifact("executorch") / "edgekit.json").read_text(encoding="utf-8"))
    for op in m["delegation"]["fallback"]:
        assert re.match(r"unseen\.py:\d+: \S", op["source"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_a_terminal_only_our_own_notes_are_on_stderr(export_tiny: Exporter, precision: str) -> None:
    lines = export_tiny(precision).err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["note"]
    assert "preprocessing is assumed" in lines[0]


def test_success_prints_what_where_how_large_how_equal_and_what_next(cli: Cli, tiny: str, tmp_path: Path) -> None:
    result = cli("export", "-m", tiny, "-t", "onnx", "--imgsz", "64", "-o", tmp_path)
    assert result.code == 0
    head, parity, delegation, *rest = result.out.splitlines()
    assert re.fullmatch(rf"onnx +fp32 +\d+\.\d s  {tmp_path}/net-onnx-fp32  \d+\.\d kB", head)
    assert re.search(r"max error \S+ · SQNR \d+\.\d dB \(floor 60\) · top-1 100% · \d+ inputs · ONNX Runtime", parity)
    assert re.search(r"ONNX Runtime CPU runs \d+ of \d+ ops", delegation)
    assert rest[-1] == f"Next: edgekit predict {tmp_path}/net-onnx-fp32 PHOTO.jpg"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ("-t onnx --imgsz 64", "net-onnx-fp32"),
        ("--format onnx --image-size 64 --precision float32", "net-onnx-fp32"),
        ("--target litert --imgsz 64 -p half", "net-tflite-fp16"),
        ("-t mlpackage --imgsz 64", "net-coreml-fp32"),
        ("-t ios --input-shape 1x3x64x64", "net-coreml-fp32"),
        ("-t pte --imgsz 64", "net-executorch-fp32"),
        ("-t xnnpack,pte,executorch --imgsz 64", "net-executorch-fp32"),
    ],
)
def test_every_accepted_alias_leads_to_the_same_artifact(
    cli: Cli, tiny: str, tmp_path: Path, arguments: str, folder: str
) -> None:
    result = cli("export", "-m", tiny, *arguments.split(), "--no-verify", "-o", tmp_path)
    assert result.code == 0, result.err
    assert [p.name for p in tmp_path.iterdir()] == [folder]
    assert json.loads((tmp_path / folder / "edgekit.json").read_text(encoding="utf-8"))["inputs"][0]["shape"][1] in (
        3,
        64,
    )


def test_labels_mean_std_batch_and_seed_reach_the_artifact(cli: Cli, tiny: str, tmp_path: Path, photo: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {n}\n" for n in range(7)), encoding="utf-8")
    size = ("--imgsz", "64", "--num-classes", "7", "--batch-size", "2", "--seed", "3")
    pixels = ("--mean", "0.5,0.5,0.5", "--std", "1,1,1", "--labels", labels)
    (m,) = document(cli, "export", "-m", tiny, "-t", "onnx", *size, *pixels, "-o", tmp_path / "out")
    assert m["inputs"][0]["shape"] == [2, 3, 64, 64]
    assert m["outputs"][0]["shape"] == [2, 7]
    assert m["preprocess"]["mean"] == [0.5, 0.5, 0.5]
    assert m["preprocess"]["std"] == [1, 1, 1]
    assert m["labels"] == "labels.txt"
    assert m["verification"][0]["passed"]
    ((best, *_),) = document(cli, "predict", m["path"], photo)
    assert best["label"] == f"class {best['index']}"


def test_the_same_verbs_work_from_python(
    tiny: str, tmp_path: Path, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (artifact,) = edgekit.export(tiny, "onnx", image_size=64, out=tmp_path)
    assert edgekit.verify(artifact).passed
    assert edgekit.inspect(artifact.path).artifact.manifest == artifact.manifest
    ((best, *_),) = edgekit.predict(artifact, [photo], top=1)
    assert 0 < best.probability <= 1
    assert capfd.readouterr().out == ""


# ------------------------------------------------------------------------------------------ predict


@pytest.mark.parametrize("target", TARGETS)
def test_predict_ranks_the_float_models_classes(
    cli: Cli, artifact: Copier, tiny: str, photo: Path, target: str
) -> None:
    folder = artifact(target)
    ((*ranked,),) = document(cli, "predict", folder, photo, "--top", "10")
    assert sorted(p["index"] for p in ranked) == list(range(10))
    assert all(p["label"] == str(p["index"]) for p in ranked)
    probabilities = [p["probability"] for p in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)

    import torch

    from edgekit.data import apply, read_image
    from edgekit.loading import load
    from edgekit.types import ModelRequest

    loaded = load(ModelRequest(model=tiny, image_size=64))
    assert loaded.preprocess
    with torch.no_grad():
        scores = loaded.module(torch.from_numpy(apply(loaded.preprocess, read_image(photo)))[None]).softmax(1)[0]
    np.testing.assert_allclose(probabilities, [scores[p["index"]] for p in ranked], atol=1e-5)


def test_predict_in_words_names_each_photo(cli: Cli, artifact: Copier, photo: Path) -> None:
    china = photo.with_name("china.jpg")
    result = cli("predict", artifact(), photo, china, "--top", "3")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [lines[0], lines[4]] == [str(photo), str(china)]
    assert all(re.fullmatch(r" +\d+\.\d\d%  \d  \(\d\)", line) for line in (*lines[1:4], *lines[5:]))
    assert len(lines) == 8


def test_the_folder_and_its_manifest_are_the_same_artifact(cli: Cli, artifact: Copier, photo: Path) -> None:
    folder = artifact()
    for command in (("predict", photo), ("inspect",), ("verify",)):
        name, *rest = command
        results = [cli(name, path, *rest) for path in (folder, folder / "edgekit.json")]
        assert [r.code for r in results] == [0, 0]
        assert results[0].out == results[1].out


def test_predict_needs_nothing_of_the_model_that_was_exported(cli: Cli, artifact: Copier, photo: Path) -> None:
    folder = artifact()
    manifest = folder / "edgekit.json"
    text = manifest.read_text(encoding="utf-8")
    before = cli("predict", folder, photo).out
    manifest.write_text(re.sub(r'"[^"]*unseen\.py:net"', '"gone.py:net"', text), encoding="utf-8")
    assert "unseen.py:net" not in manifest.read_text(encoding="utf-8")
    assert cli("predict", folder, photo).out == before


# ------------------------------------------------------------------------------------------ inspect and verify


@pytest.mark.parametrize("target", TARGETS)
def test_inspect_shows_inputs_ops_and_the_largest_layers(cli: Cli, artifact: Copier, target: str) -> None:
    folder = artifact(target)
    values = document(cli, "inspect", folder)
    assert values["path"] == str(folder)
    assert values["target"] == target
    assert sum(o["count"] for o in values["ops"]) > 0
    assert all(o["op"] and isinstance(o["delegated"], bool) for o in values["ops"])
    assert values["layers"]["mlp.1"] == 4 * (16 * 32 + 32)
    result = cli("inspect", folder)
    assert (result.code, result.err) == (0, "")
    for said in ("image", "logits", "ops in the file", values["ops"][0]["op"], "mlp.1"):
        assert said in result.out


@pytest.mark.parametrize("target", TARGETS)
def test_verify_on_the_users_own_photos(cli: Cli, artifact: Copier, photo: Path, tiny: str, target: str) -> None:
    folder = artifact(target)
    one = document(cli, "verify", folder, "--images", photo, "--model", tiny)
    assert (one["samples"], one["passed"], one["against"]) == (1, True, "float")
    both = document(cli, "verify", folder, "--images", photo.parent, "--model", tiny)
    assert (both["samples"], both["passed"]) == (2, True)
    assert both["sqnr_db"] > 100


def test_verify_by_another_floor(cli: Cli, artifact: Copier) -> None:
    folder = artifact()
    assert cli("verify", folder, "--min-sqnr", "199").code == 1
    assert cli("verify", folder, "--min-sqnr", "nan").code == 1
    assert cli("verify", folder, "--min-sqnr", "0").code == 0


# ------------------------------------------------------------------------------------------ evaluate

NUMBER = 24


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Pictures that differ enough to be of several classes."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (NUMBER, 8, 8, 3)).astype(np.uint8)
    return flat.repeat(10, 1).repeat(10, 2)


@pytest.fixture
def truth(cli: Cli, artifact: Copier, pixels: np.ndarray, tmp_path: Path) -> list[int]:
    """The classes that `predict` gives: labels by which its accuracy is 100 %."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{n:02}.png" for n in range(NUMBER)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return [ranked[0]["index"] for ranked in document(cli, "predict", artifact(), *paths)]


def test_evaluate_agrees_with_predict_in_every_form_of_data(
    cli: Cli, artifact: Copier, tiny: str, pixels: np.ndarray, truth: list[int], tmp_path: Path
) -> None:
    wrong = [t if n % 3 else (t + 1) % 10 for n, t in enumerate(truth)]
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.array(wrong))
    classes = tmp_path / "classes"
    for c in range(10):
        (classes / str(c)).mkdir(parents=True)
    table = "file,index\n"
    for n, label in enumerate(wrong):
        Image.fromarray(pixels[n]).save(classes / str(label) / f"{n:02}.png")
        table += f"{n:02}.png,{label}\n"
    (tmp_path / "pictures" / "labels.csv").write_text(table, encoding="utf-8")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "pictures", "set")
    folder = tmp_path / "net-onnx-fp32"
    for data in ("set.npz", "set.tar", "classes"):
        result = document(cli, "evaluate", folder, "--data", tmp_path / data, "--model", tiny)
        assert result["n"] == NUMBER
        assert result["top1"] == pytest.approx(100 * 2 / 3)
        assert result["top1"] <= result["top5"] <= 100
        assert result["agreement"] == 100
        assert result["images_per_second"] > 0
        low, high = result["ci95"]
        assert 0 < low < result["top1"] < high < 100


def test_evaluate_a_float_model_and_a_limit(
    cli: Cli, tiny: str, pixels: np.ndarray, truth: list[int], tmp_path: Path
) -> None:
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.array(truth))
    result = document(cli, "evaluate", tmp_path / "net-onnx-fp32", "--data", tmp_path / "set.npz", "--limit", "5")
    assert result["agreement"] is None, "the manifest's Python code ran unasked"
    assert (result["n"], result["top1"], result["top5"]) == (5, 100, 100)
    result = document(cli, "evaluate", tiny, "--data", tmp_path / "set.npz", "--limit", "3")
    assert (result["n"], result["agreement"]) == (3, None)
    text = cli("evaluate", tmp_path / "net-onnx-fp32", "--data", tmp_path / "set.npz", "-m", tiny).out
    assert re.match(r"top-1 100\.00 % \(95 % interval \d+\.\d to 100\.0\) · top-5 100\.00 % · agreement", text)


# ------------------------------------------------------------------------------------------ doctor, and a real shell


def test_doctor_finds_every_target_working_here() -> None:
    result = subprocess.run(process("doctor", "--json"), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    health = json.loads(result.stdout)
    assert [h["name"] for h in health if not h["optional"]] == [*TARGETS, "host"]
    assert {h["name"] for h in health if h["optional"]} == {"adb", "ssh", "qemu-arm64"}
    assert all(h["detail"] and bool(h["remedy"]) != h["works"] for h in health)
    assert all(h["works"] for h in health if not h["optional"])


def test_output_may_be_cut_off_by_its_reader() -> None:
    command = " ".join(process("models"))
    result = subprocess.run(["sh", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_progress_is_shown_on_a_terminal_only(tiny: str, tmp_path: Path) -> None:
    """A real pseudo-terminal as stderr gets a bar; JSON on stdout stays one document."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a thing of Unix")
    leader, follower = pty.openpty()
    command = process("export", "-m", tiny, "-t", "onnx", "--imgsz", "64", "-o", tmp_path, "--json")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert running.stdout
    document = json.loads(running.stdout.read())
    assert running.wait() == 0
    running.stdout.close()
    assert document[0]["target"] == "onnx"
    assert b"ONNX fp32" in shown
    assert b"note:" in shown
