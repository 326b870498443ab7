"""What the measuring programs of other projects have in common: a command line, and an output that is read by rules.

An output may end anywhere, come from another version, or be no text at all: a parser takes what it knows and leaves the
rest None. It never raises.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices._base import Figures
from edgekit.errors import DeviceError, UnknownName, Unsupported
from edgekit.types import Artifact
from edgekit.types.profile import OperatorTime

WARMUP_RUNS, WARMUP_SECS = 10, 0.5
"""Each start of a tool is a cold one."""
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a program printed there, both streams in one text, and its exit code (128 + N: ended by signal N)."""

    code: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tool runs: a folder of some device that holds the model and, as `input.SAMPLE.N.bin`, the inputs.

    `binary` is the tool as it is called there. `execute` runs an argument list, for so many seconds at most; `fetch`
    takes the newest file that a shell pattern finds away from there, and raises `FileNotFoundError` where it finds
    none; `put` writes one. All raise `DeviceError` where the device is lost. `local` is a folder on this machine.
    """

    binary: str
    local: Path
    execute: Callable[[Sequence[str], float], Said]
    fetch: Callable[[str], Path]
    put: Callable[[str, bytes], None]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one start of a tool is to do; `extra` are the user's own arguments, `flags` those that the tool has.

    `trace` asks for its own profile, `cold` for a short start that tells what loading takes.
    """

    model: str
    runs: int
    secs: float
    threads: int
    inputs: int = 1
    cold: bool = False
    trace: bool = False
    extra: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a tool said of itself, None or 0 where it did not; `us` are single runs, warm-up included.

    `total_ms` is what all `executions` took together.
    """

    runtime: str
    load_ms: float | None = None
    first_ms: float | None = None
    figures: Figures | None = None
    us: tuple[float, ...] = ()
    executions: int = 0
    total_ms: float | None = None
    peak_mib: float = 0.0
    before_mib: float = 0.0
    operators: tuple[OperatorTime, ...] = ()
    warnings: tuple[str, ...] = ()


class Tool(ABC):
    """One program. `target` is what it runs, `built` where its binaries come from."""

    name: str
    target: str
    built: str
    native_secs: bool = False
    """Whether it runs for at least so many seconds by itself."""
    reads_inputs: bool = False
    """Whether versions with --inputs run on arrays of ours."""

    @abstractmethod
    def named(self, binary: str, help_text: str) -> bool:
        """Whether `binary` is this program, by its name; or, with a text, by what its --help says."""

    @abstractmethod
    def command(self, binary: str, ask: Ask) -> list[str]: ...

    @abstractmethod
    def parse(self, text: str, ask: Ask) -> Report: ...

    @abstractmethod
    def failure(self, text: str) -> tuple[str, str] | None:
        """What went wrong and what to do, where the text names something that is known to go wrong."""

    def files(self) -> tuple[str, ...]:
        """Files that it writes beside its output, whose text belongs to it."""
        return ()

    def trace_file(self) -> str:
        """The file pattern of its own profile, "" where that is in its output."""
        return ""

    def outputs_command(self, binary: str, ask: Ask, sample: int) -> list[str]:
        """The command that writes `output-N.bin`, of one sample."""
        raise Unsupported(
            f"{self.name} does not give out what a model computes",
            "Verify on the host, or over adb with edgekit's own runner (.pte, without --runner).",
        )


def check_artifact(tool: Tool, artifact: Artifact) -> None:
    """Raises `Unsupported` where the tool is of another runtime."""
    target = artifact.manifest.target
    if target != tool.target:
        raise Unsupported(
            f"{tool.name} runs artifacts of the target {tool.target}; {artifact.path} is of {target}",
            "Give the runner of that runtime with --runner, or another artifact.",
        )


def tool_of(tools: Iterable[Tool], binary: str, ask_help: Callable[[], str]) -> Tool:
    """The tool that `binary` is, by its name, else by what it says when asked for help; raises `UnknownName`."""
    tools = tuple(tools)
    name = Path(binary).name
    found = [t for t in tools if t.named(name, "")]
    if not found:
        text = ask_help()
        found = [t for t in tools if t.named(name, text)]
    if found:
        return found[0]
    raise UnknownName("runner", name, [t.name for t in tools])


def flags_of(help_text: str) -> frozenset[str]:
    """The options that a help text lists, without dashes; empty where it lists none."""
    return frozenset(re.findall(r"(?m)^[ \t]*--?([A-Za-z][\w-]*)", help_text))


def lines_of(text: str) -> list[str]:
    """Lines without their ends, whichever those are, and without what a terminal or a binary left in them."""
    return ["".join(c for c in line if c == "\t" or c.isprintable()) for line in re.split(r"\r\n|\r|\n", text)]


def number(text: str) -> float | None:
    """A finite number that is not negative, as every duration and size is; else None."""
    match = re.fullmatch(NUMBER, text.strip())
    value = float(match[1]) if match else math.nan
    return value if math.isfinite(value) and value >= 0 else None


def find(pattern: str, lines: Sequence[str], last: bool = False) -> float | None:
    """The number behind the first (or last) line that has `pattern`, in which NUMBER stands for it."""
    for line in reversed(lines) if last else lines:
        if match := re.search(pattern.replace("NUMBER", NUMBER), line):
            return number(match[1])
    return None


def no_figures(tool: Tool, said: Said) -> DeviceError:
    """The error for a start that ended without a latency."""
    lines = [line.strip() for line in lines_of(said.text) if line.strip()]
    last = f"It said last: {lines[-1][:300]}" if lines else "It said nothing."
    if known := tool.failure(said.text):
        return DeviceError(f"{tool.name}: {known[0]}", known[1])
    if said.code > 128:
        return DeviceError(f"{tool.name} was ended by signal {said.code - 128} ({_signal(said.code - 128)})", last)
    if said.code in (126, 127):
        return DeviceError(
            f"{tool.name} cannot be started there (code {said.code})",
            f"{last} Is it a binary for the device's architecture, with the libraries that it needs?",
        )
    if said.code:
        return DeviceError(f"{tool.name} ended with code {said.code}", last)
    return DeviceError(f"{tool.name} printed no latency that edgekit can read", last)


def _signal(value: int) -> str:
    return {4: "illegal instruction: built for another processor", 6: "abort", 7: "bus error", 8: "arithmetic"}.get(
        value, {9: "killed: most often the system, when memory runs out", 11: "segmentation fault"}.get(value, "?")
    )
