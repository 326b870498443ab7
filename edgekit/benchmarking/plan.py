"""From what the user asked for to the cells of a sweep."""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TypeVar

from edgekit.devices import DEVICES
from edgekit.errors import BadInput, EdgekitError, UnknownName
from edgekit.loading import sha256
from edgekit.models import ZOO
from edgekit.targets import TARGETS, precision_name
from edgekit.types import Cell, SweepPlan

T = TypeVar("T")

MODELS = ("mobilenet-v2", "mobilenet-v3-small", "mobile-former-96m", "lvt")
"""What a sweep measures where no model is named: small networks of four families."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; None where nothing was said."""

    models: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    precisions: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    weights: Mapping[str, str] | None = None
    image_size: int | None = None
    calibration: str | None = None
    data: str | None = None
    limit: int | None = None
    threads: int | None = None
    num_runs: int | None = None
    warmup_runs: int | None = None
    min_secs: float | None = None
    runners: Mapping[str, str] | None = None
    python: str | None = None


def plan_of(asked: Asked) -> SweepPlan:
    """The plan of a new sweep. Raises `UnknownName` or `BadInput` for what can be told before any work."""
    models = _distinct(asked.models, MODELS, "model", "--models")
    targets = _targets(asked.targets)
    runners = {TARGETS[t.lower()].name: path for t, path in (asked.runners or {}).items()}
    files = _files(models, asked.weights or {}) | {p: _hash(Path(p), f"--runner {t}={p}") for t, p in runners.items()}
    precisions = _distinct(asked.precisions, _precisions(asked), "precision", "--precisions")
    plan = SweepPlan(
        models=models,
        targets=targets,
        precisions=tuple(dict.fromkeys(precision_name(p.lower()) for p in precisions)),
        devices=_distinct(asked.devices, ("host",), "device", "--device"),
        weights=dict(asked.weights or {}),
        image_size=asked.image_size,
        calibration=asked.calibration,
        data=asked.data,
        limit=asked.limit,
        threads=_or(asked.threads, 1),
        num_runs=_or(asked.num_runs, 50),
        warmup_runs=_or(asked.warmup_runs, 10),
        min_secs=_or(asked.min_secs, 1.0),
        runners=runners,
        python=asked.python,
        files=files,
        edgekit=version("edgekit"),
    )
    _check(plan)
    _check_devices(plan)
    return plan


def check_same(asked: Asked, before: SweepPlan) -> None:
    """Raises `BadInput` that says what differs where `asked` is not the sweep `before`, or its files have changed.

    What was not asked for is as it was.
    """
    given = {f.name: getattr(asked, f.name) for f in fields(Asked)}
    merged = {name: getattr(before, name) if value is None else value for name, value in given.items()}
    now = plan_of(Asked(**merged))
    differences = [
        f"{f.name}: {_words(getattr(before, f.name))}, now {_words(getattr(now, f.name))}"
        for f in fields(SweepPlan)
        if getattr(before, f.name) != getattr(now, f.name)
    ]
    if differences:
        raise BadInput(
            "this is not the sweep that was begun there:\n  " + "\n  ".join(differences),
            "Type --resume -o DIR alone to go on as it was begun, or another folder with -o.",
        )


def cells_of(plan: SweepPlan) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The cells of a plan in their order, and a note for each precision that a target does not have."""
    able = {t: [p for p in plan.precisions if p in TARGETS[t].precisions] for t in plan.targets}
    notes = tuple(
        f"{t} has no {p}: these cells are left out" for t in plan.targets for p in plan.precisions if p not in able[t]
    )
    pairs = [(t, p) for t in plan.targets for p in able[t]]
    if not pairs:
        TARGETS[plan.targets[0]].check(plan.precisions[0], TARGETS.values())
    cells = tuple(
        Cell(model=m, target=t, precision=p, device=d) for m, (t, p), d in product(plan.models, pairs, plan.devices)
    )
    return cells, notes


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _distinct(asked: Sequence[str] | None, default: Sequence[str], what: str, option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n.strip() for n in (default if asked is None else asked) if n.strip()))
    if not names:
        raise BadInput(f"no {what} was given", f"Name one or more after {option}, or leave it out for the usual ones.")
    return names


def _targets(asked: Sequence[str] | None) -> tuple[str, ...]:
    if asked is None:
        return _working_targets()
    names = _distinct(asked, (), "target", "--targets")
    if "all" in names:
        return tuple(TARGETS)
    return tuple(dict.fromkeys(TARGETS[n.lower()].name for n in names))


def _working_targets() -> tuple[str, ...]:
    """Those whose exporter and runtime are on this machine; raises what the last one says where there is none."""
    found, problem = [], None
    for target in TARGETS.values():
        if target.name == "coreml" and sys.platform != "darwin":
            continue  # it can be exported here and not measured
        try:
            target.require()
            found.append(target.name)
        except EdgekitError as error:
            problem = error
    if not found and problem is not None:
        raise problem
    return tuple(found)


def _precisions(asked: Asked) -> tuple[str, ...]:
    return ("fp32", "fp16") if asked.calibration is None else ("fp32", "int8")


def _files(models: Sequence[str], weights: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the files that models and weights are, by the names that the user gave."""
    found = {}
    for model in models:
        path = Path(model.rpartition(":")[0] if ".py:" in model else model)
        if model in ZOO or (":" in model and path.suffix != ".py"):
            continue
        if path.suffix not in (".py", ".pt2"):
            raise UnknownName("model", model, ZOO)
        found[str(path)] = _hash(path, f"--models {model}")
    for model, file in weights.items():
        if model not in models:
            raise BadInput(
                f"--weights {model}={file}: {model} is none of the models", f"There are {', '.join(models)}."
            )
        found[file] = _hash(Path(file), f"--weights {model}={file}")
    return found


def _hash(path: Path, option: str) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise BadInput(f"{option}: {path} cannot be read: {error.strerror}", "Check the path.") from error


def _check(plan: SweepPlan) -> None:
    if plan.num_runs < 1 or plan.warmup_runs < 0 or plan.threads < 1 or not 0 <= plan.min_secs < math.inf:
        raise BadInput(
            f"{plan.num_runs} runs, {plan.warmup_runs} warm-up runs, {plan.min_secs} seconds and {plan.threads} threads"
            " are no measurement",
            "Give at least 1 run and thread, and numbers of warm-up runs and seconds that are not negative.",
        )
    if plan.calibration is not None and plan.calibration != "synthetic":
        _exists(plan.calibration, "--calibration")
    if "int8" in plan.precisions and plan.calibration is None and not all(m.endswith(".pt2") for m in plan.models):
        raise BadInput(
            "int8 needs photos to calibrate the ranges of its activations with",
            "Give 32 or more like those the model will see: --calibration PATH. Without any: --calibration synthetic",
        )
    if plan.data is not None:
        _exists(plan.data, "--data")
    elif plan.limit is not None:
        raise BadInput("--limit is of the images at --data, and there are none", "Give --data PATH, or no --limit.")
    if plan.limit is not None and plan.limit < 1:
        raise BadInput(f"--limit is at least 1, not {plan.limit}", "Leave it out to use all the images.")


def _check_devices(plan: SweepPlan) -> None:
    """Raises `UnknownName` for a device of no kind, `BadInput` for a runner or a Python that none of them takes."""
    kinds = [DEVICES[device.partition(":")[0]] for device in plan.devices]
    if plan.runners and not any(kind.takes_runner for kind in kinds):
        raise BadInput(
            f"--runner is for phones over adb, not for {', '.join(plan.devices)}",
            "Leave it out, or name a phone.",
        )
    for target, path in plan.runners.items():
        if target not in plan.targets:
            raise BadInput(
                f"--runner {target}={path}: there is no {target}", f"The targets are {', '.join(plan.targets)}."
            )
    if plan.python and not any(kind.takes_python for kind in kinds):
        raise BadInput(
            f"--python is for boards over ssh, not for {', '.join(plan.devices)}",
            "Leave it out, or name a board.",
        )


def _exists(path: str, option: str) -> None:
    found = False
    with suppress(OSError):
        found = Path(path).exists()
    if not found:
        raise BadInput(f"{option} {path}: there is nothing", "Check the path.")


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
