"""One artifact on two machines: are the kernels of another device the same function as those of this one?"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.devices import Arrays, Device
from edgekit.errors import DeviceError
from edgekit.types import Artifact, Parity, Step

Run = Callable[[Sequence[NDArray[Any]]], Arrays]

FLOAT_SHARE = {"fp32": 1e-5, "fp16": 1e-2}
"""Of the largest value of an output: sums in another order, in 24 bits of mantissa and in 11."""
LEVELS = 256
CEILING_DB = 200.0
_ON_GRID = 1e-3
"""How far from a multiple of the step a value may lie, in steps: float32 has 24 bits, 8 of them are the integer."""


@contextmanager
def running_on(device: Device, artifact: Artifact, on_step: Step) -> Iterator[tuple[Run, str]]:
    """The artifact there, as a call from the inputs of a sample to its outputs, and its runtime's name.

    Each sample is computed once. Raises as the device does.
    """
    device.check(artifact)
    device.prepare([artifact], on_step)
    known: dict[bytes, Arrays] = {}
    on_step(f"loading on {device.name}", 0, 1)
    with device.sessions([artifact], 1) as (session,):
        runtime = session.load().runtime

        def run(sample: Sequence[NDArray[Any]]) -> Arrays:
            key = b"".join(np.ascontiguousarray(x).tobytes() for x in sample)
            if key not in known:
                on_step(f"sample {len(known) + 1} on {device.name}", 0, 0)
                known[key] = session.outputs([sample])[0]
            return known[key]

        yield run, runtime


def parity(
    artifact: Artifact, here: Sequence[Arrays], there: Sequence[Arrays], floor_db: float | None = None
) -> tuple[Parity, ...]:
    """Each output of the same samples on two machines.

    Of an fp32 file the largest difference may be 1e-5 of the output's largest value (sums in another order), of an fp16
    file 1e-2. Of a file of integers it may be one step of the output: what lies between neighbours where the output is
    an 8-bit tensor, spread by its scale; where the last layers are computed in float, what 8 bits would tell apart in
    the output's range. Where such a network has float layers inside, whose last places differ, one step is rounded the
    other way early and grows: then the two may be as far from each other as each from its simulation, `floor_db`.
    """
    found = []
    for n, spec in enumerate(artifact.manifest.outputs):
        a, b = (np.stack([sample[n] for sample in samples]).astype(np.float64) for samples in (here, there))
        if a.shape != b.shape:
            raise DeviceError(f"output {spec.name} has the shape {b.shape[1:]} there, {a.shape[1:]} here")
        share = FLOAT_SHARE.get(artifact.manifest.precision)
        if share is not None:
            allowed, rule = share * float(np.abs(a).max(initial=0.0)), f"{share:g} of the largest value"
        elif step := grid_step(a):
            allowed, rule = step * (1 + _ON_GRID), "one step of int8"
        else:
            allowed, rule = float(np.ptp(a)) / (LEVELS - 1), "a 255th of the output's range, a step of 8 bits"
        found.append(
            Parity(
                output=spec.name,
                max_difference=float(np.nan_to_num(np.abs(a - b), nan=1e308, posinf=1e308).max(initial=0.0)),
                allowed=allowed,
                rule=rule,
                sqnr_db=round(sqnr_db(a, b), 2),
                floor_db=floor_db if share is None else None,
            )
        )
    return tuple(found)


def parity_words(p: Parity) -> str:
    """Such as "output logits differs by 0 at most (allowed 0.075: one step of int8)"."""
    text = f"output {p.output} differs from this machine by {p.max_difference:.2g} at most"
    text += f" ({'allowed' if p.within_rule else 'more than'} {p.allowed:.2g}: {p.rule})"
    if p.within_rule or p.floor_db is None:
        return text
    verdict = "allowed" if p.passed else "less than"
    return f"{text}; SQNR {p.sqnr_db:.1f} dB ({verdict} {p.floor_db:.1f}: as near as to the simulation)"


def sqnr_db(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """10 log10(sum r² / sum (r - a)²), clipped to ±200 dB; 200 where equal, -200 where either is not finite."""
    r, a = reference.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(r).all() and np.isfinite(a).all()):
        return -CEILING_DB
    noise, signal = float(((r - a) ** 2).sum()), float((r**2).sum())
    if noise == 0:
        return CEILING_DB
    if signal == 0:
        return -CEILING_DB
    return float(np.clip(10 * math.log10(signal / noise), -CEILING_DB, CEILING_DB))


def grid_step(values: NDArray[np.float64]) -> float:
    """The scale of an 8-bit tensor of which only its float values are known, or 0 where they are not such.

    Zero is one of its levels, so that all are multiples of the scale, which is the least distance of two of them where
    neighbours occur. At most 256 levels.
    """
    levels = np.unique(values)
    # Two spellings of one level differ in their last place.
    gaps = np.diff(levels)
    gaps = gaps[gaps > _ON_GRID * float(np.abs(levels).max(initial=0.0)) / LEVELS]
    if not gaps.size:
        return 0.0
    step = float(gaps.min())
    multiples = levels / step
    off = float(np.abs(multiples - np.round(multiples)).max())
    return step if off <= _ON_GRID and np.ptp(multiples) < LEVELS else 0.0
