"""The protocol of a measurement: what each mode takes, what is kept of a device that is lost, and what tools say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import edgekit
from edgekit.devices import Burst, Device, Figures, LoadTimes, Memory, Session
from edgekit.errors import BadInput, DeviceError
from edgekit.profiling.measuring import RESTARTS, WARMUP_SECS
from edgekit.profiling.statistics import merged, summary
from edgekit.types import Artifact, Step
from tests.conftest import Cli


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    out = tmp_path_factory.mktemp("net")
    (made,) = edgekit.export(net, "onnx", input_shape=[(1, 3, 48, 48)], out=out, verify=False)
    return made


# ------------------------------------------------------------------------------------------ on this machine


def test_the_usual_protocol_is_what_it_says(artifact: Artifact) -> None:
    (result,) = edgekit.profile([artifact]).results
    protocol = result.protocol
    assert (protocol.mode, protocol.warmup_runs, protocol.num_runs, protocol.min_secs) == ("usual", 10, 50, 1.0)
    assert len(result.latency_us) == result.runs >= 50
    assert sum(result.latency_us) >= 1e6
    assert protocol.rounds * protocol.runs_per_round == result.runs
    assert result.size_bytes == artifact.size_bytes
    assert result.delegation is not None
    assert result.delegation.backend == artifact.manifest.delegation.backend


def test_mlperf_takes_its_runs_and_seconds(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.profiling import profile

    monkeypatch.setitem(profile.__globals__["PROTOCOLS"], "mlperf", (130, 0.4))
    (result,) = edgekit.profile([artifact], mode="mlperf").results
    assert result.protocol.mode == "mlperf"
    assert result.runs >= 130
    assert sum(result.latency_us) >= 0.4e6
    assert result.p90_ms == pytest.approx(float(np.percentile(result.latency_us, 90)) / 1e3)


def test_mlperf_is_not_to_be_had_for_less(artifact: Artifact, cli: Cli) -> None:
    for options in (("--num-runs", "100"), ("--min-secs", "1")):
        result = cli("profile", artifact.path, "--mode", "mlperf", *options)
        assert result.code == BadInput.exit_code
        assert "1024 runs and 60 s" in result.err


def test_a_sustained_run_is_a_curve(artifact: Artifact) -> None:
    (result,) = edgekit.profile([artifact], num_runs=5, min_secs=0, sustained=6.0).results
    secs = [p.secs for p in result.sustained]
    assert secs[0] == 0
    assert secs == sorted(secs)
    assert 2 <= len(secs) <= 7
    assert all(p.p50_ms > 0 and p.runs > 1 for p in result.sustained)


@pytest.mark.parametrize("options", [{"mode": "quick"}, {"sustained": -1.0}, {"sustained": float("inf")}])
def test_what_is_no_protocol(artifact: Artifact, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        edgekit.profile([artifact], **options)


# ------------------------------------------------------------------------------------------ a device of known latencies


class Known(Session):
    """Answers with the latencies that it was made with; `fails_at` is the turn in which it is lost."""

    def __init__(self, artifact: Artifact, us: float, order: list[str], fails_at: int = 10**9) -> None:
        self.artifact, self.us, self.order, self.fails_at, self.turns = artifact, us, order, fails_at, 0

    def load(self) -> LoadTimes:
        return LoadTimes(load_ms=1, first_ms=self.us / 1e3, runtime="known 1")

    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        self.turns += 1
        self.order.append(f"{self.us:.0f}")
        if self.turns > self.fails_at:
            raise DeviceError("the device is gone", "Plug it in.")
        return Burst(us=(self.us,) * max(runs, int(secs * 1e6 / self.us)))

    def memory(self) -> Memory:
        return Memory(peak_mib=0, before_mib=0)

    def outputs(self, samples: Sequence[Sequence[NDArray[Any]]]) -> list[list[NDArray[Any]]]:
        raise NotImplementedError

    def trace(self, runs: int) -> tuple[Path, float]:
        raise NotImplementedError


class Tool(Known):
    restarts = True

    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        super().run(runs, secs, expected_secs)
        ms = self.us / 1e3 * (1 + 0.01 * self.turns)
        return Burst(us=(), figures=Figures(runs=runs, mean_ms=ms, std_ms=0.0, min_ms=ms, p50_ms=ms, max_ms=ms))

    def warnings(self) -> tuple[str, ...]:
        return ("GPU was asked for and nothing shows that it was used",)


class Bench(Device):
    name = "bench"

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions

    def check(self, artifact: Artifact) -> None: ...

    @contextmanager
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> Iterator[list[Session]]:
        yield list(self._sessions)

    def facts(self) -> dict[str, str]:
        return {"kind": "bench"}

    def gate(self, on_step: Step) -> tuple[str, ...]:
        return ("degraded: it is hot",)

    def state(self) -> dict[str, str]:
        return {"temperature": "50"}


def test_artifacts_take_turns_and_ratios_are_of_their_medians(artifact: Artifact) -> None:
    order: list[str] = []
    device = Bench([Known(artifact, 1000, order), Known(artifact, 3000, order)])
    result = edgekit.profile([artifact, artifact], device=device, num_runs=100, min_secs=0)
    (comparison,) = result.comparisons
    assert (comparison.ratio, comparison.ci95, comparison.of) == (3.0, (3.0, 3.0), "latency")
    turns = order[2:]  # behind the warm-ups
    assert turns == ["1000", "3000"] * (len(turns) // 2)
    assert len(turns) >= 40
    assert [r.runs for r in result.results] == [100, 100]
    for r in result.results:
        assert r.state == {"before": {"temperature": "50"}, "after": {"temperature": "50"}}
        assert r.warnings == ("degraded: it is hot",)
        assert (r.peak_memory_mib, r.model_memory_mib) == (None, None)


def test_warm_up_is_ten_runs_and_half_a_second(artifact: Artifact) -> None:
    asked: list[tuple[int, float]] = []

    class Watched(Known):
        def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
            asked.append((runs, secs))
            return super().run(runs, secs, expected_secs)

    edgekit.profile([artifact], device=Bench([Watched(artifact, 1000, [])]))
    assert asked[0] == (10, WARMUP_SECS) == (10, 0.5)


@pytest.mark.parametrize("turn", [1, 2, 7])
def test_what_was_measured_before_a_device_is_lost_is_kept(artifact: Artifact, turn: int) -> None:
    device = Bench([Known(artifact, 1000, []), Known(artifact, 3000, [], fails_at=turn)])
    with pytest.raises(DeviceError, match="the device is gone") as caught:
        edgekit.profile([artifact, artifact], device=device, num_runs=100, min_secs=0)
    if turn == 1:  # it had only been warmed up
        assert caught.value.partial is None
        return
    results = caught.value.partial.results
    assert [r.protocol.rounds for r in results] == [turn - 1, turn - 1]
    assert results[0].p50_ms == 1.0
    assert any(w.startswith("cut short: the device is gone") for w in results[0].warnings)


def test_partial_results_are_written_and_the_exit_code_is_an_error(
    artifact: Artifact, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Bench([Known(artifact, 1000, [], fails_at=5)])
    monkeypatch.setattr("edgekit.devices.open_device", lambda *_: device)
    result = cli("profile", artifact.path, "-o", tmp_path / "p.json")
    assert result.code == 1
    assert "the device is gone" in result.err
    assert "before the error" in result.err
    assert "cut short" in (tmp_path / "p.json").read_text()


def test_a_tool_without_samples_is_started_a_few_times_in_turns(artifact: Artifact) -> None:
    order: list[str] = []
    device = Bench([Tool(artifact, 1000, order), Tool(artifact, 2000, order)])
    result = edgekit.profile([artifact, artifact], device=device, num_runs=50, min_secs=0)
    assert order == ["1000", "2000"] * RESTARTS
    first, second = result.results
    assert first.latency_us == ()
    assert (first.runs, first.protocol.rounds, first.protocol.runs_per_round) == (50, RESTARTS, 10)
    assert (first.p50_ms, first.min_ms, first.max_ms) == pytest.approx((1.03, 1.01, 1.05))
    assert (first.p90_ms, first.p99_ms) == (None, None)
    (comparison,) = result.comparisons
    assert comparison.ratio == pytest.approx(2.0)
    assert any("nothing shows that it was used" in w for w in second.warnings)


def test_merged_figures_are_those_of_all_runs_together() -> None:
    rng = np.random.default_rng(0)
    rounds = [rng.lognormal(0, 0.2, n) for n in (10, 20, 40)]
    figures = [
        Figures(runs=r.size, mean_ms=float(r.mean()), std_ms=float(r.std(ddof=1)), min_ms=float(r.min()),
                max_ms=float(r.max()))
        for r in rounds
    ]  # fmt: skip
    whole, parts = summary(np.concatenate(rounds)[None] * 1e3), merged(figures)
    assert (parts.mean_ms, parts.std_ms, parts.cv) == pytest.approx((whole.mean_ms, whole.std_ms, whole.cv))
    assert (parts.min_ms, parts.max_ms, parts.p50_ms) == (whole.min_ms, whole.max_ms, None)
    assert merged([]).stable
