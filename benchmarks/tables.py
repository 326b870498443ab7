"""Write the README's tables from the saved results; `--check` exits 1 where the README says something else."""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def saved(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def accuracy() -> str:
    """MobileNetV2 on real photos, by runtime and precision."""
    rows = ["| runtime | top-1 | top-5 | same top-1 as float | SQNR |", "|---|---|---|---|---|"]
    for name, r in saved("accuracy")["results"].items():
        proof = (f"{r['agreement']:.2f} %", f"{r['sqnr_db']:.0f} dB") if "sqnr_db" in r else ("", "")
        label = "float model in torch" if name == "float" else name
        rows.append(f"| {label} | {r['top1']:.2f} % | {r['top5']:.2f} % | {proof[0]} | {proof[1]} |")
    return "\n".join(rows)


def speed() -> str:
    """LVT's deploy form on three runtimes against its train form."""
    content = saved("lvt_forms")
    (_, base), *others = content["results"].items()
    rows = ["| lvt, fp32, 2 threads | faster than the train form in ONNX Runtime | delegates |", "|---|---|---|"]
    rows += [f"| {form} | {base['min_ms'] / r['min_ms']:.2f}x | {content['delegation'][form]} |" for form, r in others]
    return "\n".join(rows)


def overhead() -> str:
    """The price of edgekit over the bare library calls, and the start of the command line."""
    startup, ratio = saved("startup")["results"]["edgekit --help"]["median_ms"], saved("export_overhead")["ratio"]
    return (
        f"- `edgekit export -m lvt -t coreml`, verified, takes {ratio:.2f} times what the bare calls of torch.export"
        f" and coremltools take.\n- `edgekit --help` takes {startup / 1e3:.2f} s."
    )


def filled(text: str) -> str:
    for table in (accuracy, speed, overhead):
        name = table.__name__
        place = re.search(rf"<!-- {name} -->\n.*?\n<!-- /{name} -->", text, re.DOTALL)
        assert place, f"the README has no place for the table {name}"
        text = text.replace(place[0], f"<!-- {name} -->\n{table()}\n<!-- /{name} -->")
    return text


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit(0 if after == before else "the README's tables are stale: python benchmarks/tables.py")
    README.write_text(after, encoding="utf-8")
