"""What int8 and other precisions cost against fp32, from the cells of a sweep."""

import shlex
from collections.abc import Sequence

from edgekit.types import CellResult, Ratio

CHEAPER = ("int8", "int8-dynamic")
"""Precisions that promise speed."""
NOT_INTERLEAVED = "from separate runs, not interleaved: `{}` compares for sure"
MARGIN = 0.98
"""Separate runs of one artifact differ by about so much: nearer to 1 is no gain."""


def ratios_to_fp32(results: Sequence[CellResult]) -> tuple[Ratio, ...]:
    """Of each cell that is done, to the fp32 one of the same model, target and device, on the same machine."""
    fp32 = {_key(r): r for r in results if r.cell.precision == "fp32" and _cost(r)}
    found = []
    for result in results:
        base = fp32.get(_key(result))
        cost, base_cost = _cost(result), _cost(base) if base else None
        if base is None or result.cell.precision == "fp32" or not cost or not base_cost:
            continue
        ratio = cost / base_cost
        counted = result.profile is not None and result.profile.instructions is not None
        slow = result.cell.precision in CHEAPER and ratio > MARGIN and not counted
        found.append(Ratio(cell=result.cell, ratio=ratio, warning=_warning(result, base, ratio) if slow else ""))
    return tuple(found)


def _key(result: CellResult) -> tuple[str, ...]:
    """Where two cells agree in this, their latencies are of the same model on the same hardware."""
    device = result.profile.device if result.profile else {}
    cell = result.cell
    host = result.host if cell.device == "host" else ""  # one phone is the same at any machine
    return cell.model, cell.target, cell.device, host, device.get("model", ""), device.get("cpu", "")


def _cost(result: CellResult) -> float | None:
    """The median latency, or on an emulator the instructions."""
    if result.status != "done" or result.profile is None:
        return None
    return result.profile.p50_ms or result.profile.instructions or result.profile.mean_ms


def _warning(result: CellResult, base: CellResult, ratio: float) -> str:
    what = "slower than" if ratio > 2 - MARGIN else "not faster than"
    head = f"{result.cell.precision} is {what} fp32: it takes {ratio:.2f} of its time"
    causes = result.slow_causes or ("its file shows no cause: this runtime's int8 kernels gain nothing here",)
    paths = [r.profile.artifact if r.profile else r.artifact for r in (base, result)]
    how = NOT_INTERLEAVED.format(shlex.join(["edgekit", "profile", *paths, "--device", result.cell.device]))
    return "\n".join((f"{head} ({how})", *(f"  {cause}" for cause in causes)))
