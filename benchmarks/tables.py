"""Write the tables of the documents from the saved results; `--check` exits 1 where a document says something else."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from _measure import saved

from edgekit.models import list_models

ROOT = Path(__file__).parent.parent
TITLES = {"executorch": "ExecuTorch", "tflite": "LiteRT", "onnx": "ONNX Runtime", "coreml": "Core ML"}


def accuracy() -> str:
    """MobileNetV2 on real photos, by runtime and precision."""
    rows = ["| runtime | top-1 | top-5 | same top-1 as float | SQNR |", "|---|---|---|---|---|"]
    for name, r in saved("accuracy")["results"].items():
        proof = (f"{r['agreement']:.2f} %", f"{r['sqnr_db']:.0f} dB") if "sqnr_db" in r else ("", "")
        label = "float model in torch" if name == "float" else name
        rows.append(f"| {label} | {r['top1']:.2f} % | {r['top5']:.2f} % | {proof[0]} | {proof[1]} |")
    return "\n".join(rows)


def speed() -> str:
    """How many times faster a model is as edgekit exports it than through the bare library calls."""
    rows = [f"| model | {' | '.join(TITLES[t] for t in ('executorch', 'tflite', 'onnx'))} |", "|---|---|---|---|"]
    for name, forms in saved("naive_vs_edgekit")["results"].items():
        cells = []
        for target in ("executorch", "tflite", "onnx"):
            plain, ours = forms[f"{target} naive"], forms[f"{target} edgekit"]["min_ms"]
            if "min_ms" in plain:
                cells.append(f"{plain['min_ms'] / ours:.2f}x")
            else:
                # What does not run has no time: the same train form in the runtime that takes it stands in.
                cells.append(f"{forms['onnx naive']['min_ms'] / ours:.2f}x *")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def latency() -> str:
    """The same measurement in milliseconds, with the delegates."""
    content = saved("naive_vs_edgekit")
    rows = ["| model | runtime | bare calls | edgekit | delegates / ops outside |", "|---|---|---|---|---|"]
    for name, forms in content["results"].items():
        for target in ("executorch", "tflite", "onnx"):
            plain, ours = forms[f"{target} naive"], forms[f"{target} edgekit"]
            before = f"{plain['min_ms']:.2f} ms" if "min_ms" in plain else f"fails: {plain['fails']}"
            parts = " → ".join(filter(None, (plain.get("delegates / outside"), ours["delegates / outside"])))
            rows.append(f"| {name} | {TITLES[target]} | {before} | {ours['min_ms']:.2f} ms | {parts} |")
    e = content["environment"]
    return "\n".join(
        [*rows, "", f"{e['processor']}, {e['cores']} cores, {content['threads']} threads, torch {e['torch']}."]
    )


def zoo() -> str:
    """Every model: its card, and what each target makes of it."""
    targets = ("coreml", "executorch", "tflite", "onnx")
    rows = [
        f"| model | input | params | MACs | {' | '.join(TITLES[t] for t in targets)} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = saved("zoo")["results"]
    for spec in (spec for spec in list_models() if spec.name in results):
        cells = []
        for target in targets:
            r = results[spec.name][target]
            cells.append(
                f"{r['bytes'] / 1e6:.1f} MB, {r['sqnr_db']:.0f} dB, {r['partitions']} / {sum(r['outside'].values())}"
            )
        size = "x".join(map(str, spec.input[1:]))
        rows.append(
            f"| {spec.name} | {size} | {spec.params / 1e6:.2f} M | {spec.macs / 1e6:.0f} M | {' | '.join(cells)} |"
        )
    return "\n".join(rows)


def outside() -> str:
    """Why some ops stay outside a delegate, by target."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, row in saved("zoo")["results"].items():
        for target, r in row.items():
            for reason, count in r["outside"].items():
                found.setdefault((target, reason), {})[name] = count
    lines = [
        f"- {TITLES[target]}, {reason}: {', '.join(f'{n} ({c})' for n, c in models.items())}"
        for (target, reason), models in found.items()
    ]
    return "\n".join(lines) or "Nothing."


def int8_accuracy() -> str:
    """What int8 costs on each runtime."""
    targets = ("executorch", "tflite", "onnx", "coreml")
    rows = [f"| model | float | {' | '.join(TITLES[t] for t in targets)} |", "|---|---|---|---|---|---|"]
    for name, found in saved("int8_accuracy")["results"].items():
        cells = [f"{found[t]['top1']:.2f} % ({found[t]['drop']:+.2f})" for t in targets]
        rows.append(f"| {name} | {found['onnx']['reference_top1']:.2f} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def int8_zoo() -> str:
    """Size, distance from the simulation and speed of the zoo in int8."""
    targets = ("executorch", "tflite", "onnx", "coreml")
    rows = [f"| model | {' | '.join(TITLES[t] for t in targets)} |", "|---|---|---|---|---|"]
    for name, found in saved("int8_zoo")["results"].items():
        cells = []
        for r in (found[t] for t in targets):
            times = f", {r['speed'][0]:.2f}x" if r["speed"] else ""
            cells.append(f"{r['of_fp32']:.2f}, {r['simulation_sqnr_db']:.0f} dB{times}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def overhead() -> str:
    """The price of edgekit over the bare library calls, and the start of the command line."""
    startup, ratio = saved("startup")["results"]["edgekit --help"]["median_ms"], saved("export_overhead")["ratio"]
    return (
        f"- `edgekit export -m lvt -t coreml`, verified, takes {ratio:.2f} times what the bare calls of torch.export"
        f" and coremltools take.\n- `edgekit --help` takes {startup / 1e3:.2f} s."
    )


TABLES: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (accuracy, speed, overhead, int8_accuracy),
    "edgekit/models/README.md": (zoo, outside, latency, int8_zoo),
}


def filled(text: str, tables: tuple[Callable[[], str], ...]) -> str:
    for table in tables:
        name = table.__name__
        place = re.search(rf"<!-- {name} -->\n.*?\n?<!-- /{name} -->", text, re.DOTALL)
        assert place, f"there is no place for the table {name}"
        text = text.replace(place[0], f"<!-- {name} -->\n{table()}\n<!-- /{name} -->")
    return text


if __name__ == "__main__":
    stale = []
    for document, tables in TABLES.items():
        before = (ROOT / document).read_text(encoding="utf-8")
        after = filled(before, tables)
        if after != before:
            stale.append(document)
            if "--check" not in sys.argv:
                (ROOT / document).write_text(after, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"the tables of {', '.join(stale)} are stale: make zoo-table, or python benchmarks/tables.py")
