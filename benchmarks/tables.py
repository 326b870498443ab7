"""Write the tables of the documents from the saved results; `--check` exits 1 where a document says something else."""

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from _measure import saved

from edgekit.data_free.clusterq import VARIANTS
from edgekit.models import create_model, list_models, shipped_card, shipped_tags
from edgekit.models._card import SHIPPED

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


def data_free_int8() -> str:
    """Top-1 in int8 without data, beside photos."""
    rows = ["| model | float | photos | `--data-free` | `--data-free=analytic` |", "|---|---|---|---|---|"]
    for name, r in saved("data_free_int8")["accuracy"].items():
        cells = [f"{r[how]['top1']:.2f} % ({r[how]['drop']:+.2f})" for how in ("photos", "images", "analytic")]
        rows.append(f"| {name} | {r['float_top1']:.2f} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def data_free_noise() -> str:
    """The distance of int8 from float of each family, without data and with photos."""
    rows = ["| model | photos | `--data-free` | `--data-free=analytic` |", "|---|---|---|---|"]
    for name, found in saved("data_free_int8")["noise"].items():
        cells = [f"{found[how]['sqnr_db']:.1f} dB" for how in ("photos", "images", "analytic")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def few_bits() -> str:
    """Drops in points by protocol and method: the mean over seeds and its standard deviation."""
    drops: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for key, r in saved("few_bits")["results"].items():
        model, scheme, protocol, method, _ = key.split()
        drops.setdefault((model, scheme, method), {}).setdefault(protocol, []).append(r["drop"])
    rows = ["| model | scheme | method | A | B | H |", "|---|---|---|---|---|---|"]
    for (model, scheme, method), found in drops.items():
        cells = [_spread(found.get(protocol, [])) for protocol in "abh"]
        rows.append(f"| {model} | {scheme} | {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def clusterq_ablation() -> str:
    """What each term gives: top-1 of the last epoch, and what choosing an epoch on the test images would add."""
    found: dict[str, list[dict[str, float]]] = {}
    for key, r in saved("clusterq_ablation")["results"].items():
        found.setdefault(key.split()[0], []).append(r)
    rows = ["| variant | top-1 | drop | best epoch on test images, above the last |", "|---|---|---|---|"]
    for variant in [v for v in VARIANTS if v in found]:
        rs = found[variant]
        optimism = statistics.mean(r["best"] - r["last"] for r in rs)
        cells = (_spread([r["top1"] for r in rs]), _spread([r["drop"] for r in rs]), f"{optimism:+.2f}")
        rows.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(rows)


def devices() -> str:
    """An artifact against itself, its operators against the whole, and ARM kernels against x86."""
    found = saved("devices")["results"]
    rows = [
        "| artifact | against itself | operators / whole | without overhead | ARM from x86 (allowed) | instructions |",
        "|---|---|---|---|---|---|",
    ]
    for name, two in found["twice"].items():
        parts, arm = found["operators"][name], found["qemu"].get(name)
        low, high = two["ci95"]
        arm_cells = ["", ""]
        if arm:
            beyond = "" if arm["within_rule"] else f", {arm['sqnr_db']:.0f} dB"
            counts = sorted({f"{count / 1e6:.3f} M" for count in arm["instructions"]})
            arm_cells = [f"{arm['max_difference']:.2g} ({arm['allowed']:.2g}){beyond}", " and ".join(counts)]
        cells = (
            f"{two['ratio']:.3f} ({low:.3f}-{high:.3f})",
            f"{parts['with_overhead']:.2f}",
            f"{parts['share_of_whole']:.2f}",
            *arm_cells,
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def shipped() -> str:
    """The weights that come along: their cards, and int8 on four runtimes."""
    rows = ["| weights | parameters | file | trained by | int8 loses, on four runtimes |", "|---|---|---|---|---|"]
    found = saved("int8_accuracy")["results"]
    for name, tag in [(spec.name, tag) for spec in list_models() for tag in shipped_tags(spec.name)]:
        size = (SHIPPED / f"{name}-{tag}.safetensors").stat().st_size
        params = sum(p.numel() for p in create_model(name, weights=tag).parameters())
        drops = [r["drop"] for r in found[name].values()]
        rows.append(
            f"| `-m {name} --weights {tag}` | {params / 1e6:.2f} M | {size / 1e6:.1f} MB |"
            f" {shipped_card(name, tag).trained} | {min(drops):+.2f} to {max(drops):+.2f} points |"
        )
    return "\n".join(rows)


def distillation() -> str:
    """Snapshot distillation and SSLD against plain training with as many steps."""
    rows = ["| training | top-1 | against plain, by seed | against the same cycles, by seed |", "|---|---|---|---|"]
    for variant, r in saved("distillation")["summary"].items():
        cells = [
            ", ".join(f"{v:+.2f}" for v in r[key]["each"]) if key in r else ""
            for key in ("minus_plain", "minus_cycles")
        ]
        rows.append(f"| {variant} | {_spread(r['top1']['each'])} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def overhead() -> str:
    """The price of edgekit over the bare library calls, and the start of the command line."""
    startup, ratio = saved("startup")["results"]["edgekit --help"]["median_ms"], saved("export_overhead")["ratio"]
    return (
        f"- `edgekit export -m lvt -t coreml`, verified, takes {ratio:.2f} times what the bare calls of torch.export"
        f" and coremltools take.\n- `edgekit --help` takes {startup / 1e3:.2f} s."
    )


TABLES: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (accuracy, speed, overhead, int8_accuracy, data_free_int8, devices, distillation),
    "edgekit/data_free/README.md": (data_free_noise, few_bits, clusterq_ablation),
    "edgekit/models/README.md": (zoo, outside, latency, int8_zoo),
    "edgekit/models/shipped/README.md": (shipped,),
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
