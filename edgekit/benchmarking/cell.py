"""The process of one cell: it exports, evaluates and profiles, and says on stdout what it has found.

It is started by `guard` as `python -P -m edgekit.benchmarking.cell JOB` and answers with `Answer`s, one JSON a line.
"""

import faulthandler
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TextIO

import cattrs

from edgekit.artifacts import load_artifact
from edgekit.benchmarking._job import Answer, Job
from edgekit.benchmarking.guard import PR_SET_PDEATHSIG, process_control
from edgekit.devices import DEVICES, Device, open_device
from edgekit.errors import EdgekitError, UsageError
from edgekit.evaluation import evaluate
from edgekit.loading import runs_code
from edgekit.pipeline import export
from edgekit.profiling import profile, slow_causes
from edgekit.types import Artifact, ModelRequest, Step

OOM_SCORE = "500"
"""Where memory runs out, the kernel ends a cell before it ends what else the machine does."""
Say = Callable[[Answer], None]


def main() -> None:
    process_control(PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.enable()  # its log says where a crash, or the guard's SIGABRT, found it
    signal.signal(signal.SIGTERM, _leave)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(OOM_SCORE)
    # The libraries write to stdout from Python and from C++: that leads to the log, and ours to a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        job = cattrs.Converter().structure(json.loads(sys.argv[1]), Job)
        try:
            run(job, lambda answer: _say(answers, answer))
        except EdgekitError as error:
            traceback.print_exc()
            _say(answers, Answer(error=error.message, hint=error.hint))
        except Exception as error:  # one red cell, and the others go on
            traceback.print_exc()
            _say(answers, Answer(error=f"{type(error).__name__}: {error}", hint="Its log has all that it said."))
    sys.stderr.flush()
    os._exit(0)  # all is said: taking the libraries down costs seconds, and may crash


def run(job: Job, say: Say) -> None:
    """Do the steps of a job in their order."""
    say(Answer(step=job.steps[0]))
    artifact = _export(job, say) if "export" in job.steps else _made(job)
    assert artifact is not None, "a job that exports nothing is given an artifact"
    if "evaluate" in job.steps and job.plan.data is not None:
        _evaluate(artifact, job, job.plan.data, say)
    if "profile" in job.steps:
        _profile(artifact, job, say)
    say(Answer(finished=True))


def _leave(number: int, frame: FrameType | None) -> None:
    """End, and on the way put away what lies on a device; the log says where that was, as after a crash."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    at = f'\n  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}' if frame else ""
    print(f"Fatal Python error: ended by its guard{at}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _say(answers: TextIO, answer: Answer) -> None:
    values = {k: v for k, v in asdict(answer).items() if v not in (None, "", False)}
    print(json.dumps(values, allow_nan=False), file=answers, flush=True)


def _step(name: str, say: Say) -> Step:
    """A step as a line, when it changes."""
    last = [""]

    def report(what: str, done: int, total: int) -> None:
        if what != last[0]:
            last[0] = what
            say(Answer(step=f"{name}: {what}"))

    return report


def _export(job: Job, say: Say) -> Artifact:
    cell, plan = job.cell, job.plan
    artifact = _made(job)
    if artifact is None:
        shutil.rmtree(_folder(job), ignore_errors=True)
        (artifact,) = export(
            cell.model,
            cell.target,
            precision=cell.precision,
            weights=plan.weights.get(cell.model),
            image_size=plan.image_size,
            calibration=plan.calibration if cell.precision == "int8" else None,
            compare_speed=False,
            out=_folder(job),
            on_step=_step("export", say),
        )
    manifest = artifact.manifest
    against_float = manifest.verification[-1]
    parity = {
        "sqnr_db": against_float.sqnr_db,
        "max_abs_error": against_float.max_abs_error,
        "top1_agreement": against_float.top1_agreement,
    }
    path = artifact.path.relative_to(Path(job.artifacts).parent)
    say(Answer(artifact=path.as_posix(), size_bytes=artifact.size_bytes, parity=parity, notes=manifest.notes))
    return artifact


def _folder(job: Job) -> Path:
    return Path(job.artifacts) / job.cell.artifact


def _made(job: Job) -> Artifact | None:
    """The artifact of an earlier process, where it is whole and was made for the same request; else None."""
    cell, plan = job.cell, job.plan
    weights = plan.weights.get(cell.model)
    wanted = ModelRequest(model=cell.model, weights=weights, image_size=plan.image_size)
    for path in sorted(_folder(job).glob("*/edgekit.json")):
        with suppress(UsageError):
            artifact = load_artifact(path)
            manifest = artifact.manifest
            found = (manifest.request, manifest.target, manifest.precision, manifest.edgekit)
            same_weights = weights is None or manifest.weights.sha256 == plan.files.get(weights)
            if found == (wanted, cell.target, cell.precision, plan.edgekit) and same_weights and manifest.verification:
                return artifact
    return None


def _evaluate(artifact: Artifact, job: Job, data: str, say: Say) -> None:
    # The user has named a model that is Python code: it may be run again.
    model = job.cell.model if runs_code(job.cell.model) else None
    found = evaluate(artifact, data, model=model, limit=job.plan.limit, on_step=_step("evaluate", say))
    accuracy = {"top1": found.top1, "top5": found.top5, "n": found.n, "drop": found.drop, "agreement": found.agreement}
    say(Answer(accuracy=accuracy))


def _profile(artifact: Artifact, job: Job, say: Say) -> None:
    plan = job.plan
    try:
        measured = profile(
            [artifact],
            device=_device(job),
            threads=plan.threads,
            num_runs=plan.num_runs,
            warmup_runs=plan.warmup_runs,
            min_secs=plan.min_secs,
            on_step=_step("profile", say),
        )
    except EdgekitError as error:
        if error.partial is not None and error.partial.results:
            say(Answer(profile=error.partial.results[0]))
        raise
    say(Answer(profile=measured.results[0]))
    if job.cell.precision.startswith("int8"):
        with suppress(EdgekitError):  # the latency is what was asked for
            say(Answer(slow_causes=slow_causes(artifact)))


def _device(job: Job) -> Device:
    """The cell's device, with the runner and the interpreter that were given for its kind."""
    plan, kind = job.plan, DEVICES[job.cell.device.partition(":")[0]]
    runner = plan.runners.get(job.cell.target) if kind.takes_runner else None
    python = plan.python if kind.takes_python else None
    return open_device(job.cell.device, Path(runner) if runner else None, python=python or "")


if __name__ == "__main__":
    main()
