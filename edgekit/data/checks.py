"""What is wrong with images to train on, before an hour of training tells: said with the names of the files.

Images are compared as decoded pixels: copies under other names or in other files have the same, and metadata that was
rewritten does not matter. Those of other compression or size are not found.
"""

from collections import Counter
from dataclasses import dataclass, field

from edgekit.data.images import ImageSet
from edgekit.data.looks import TRANSPARENT, Looked, listed, look_at
from edgekit.errors import BadInput
from edgekit.types import Step

MAX_UNREADABLE = 0.05
MAX_LEAKED = 0.01
"""Of the images to evaluate on: as many points may the accuracy be too high."""
MAX_CONTRADICTED = 0.05
IMBALANCE = 20
SMALL = 8
"""Pixels of the shorter side."""


@dataclass(frozen=True)
class Findings:
    """`problems` make training pointless, `notes` are to be known. `unreadable` are the numbers of training images."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[int, ...] = ()

    def refuse(self) -> None:
        """Raises `BadInput` with all problems, if there are any."""
        if self.problems:
            count = f"{len(self.problems)} problems" if len(self.problems) > 1 else "a problem"
            lines = "\n  ".join(self.problems)
            raise BadInput(f"the data has {count}\n  {lines}", "Correct the data. To look again: edgekit data check")


@dataclass(frozen=True)
class _Report:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, text: str, is_problem: bool) -> None:
        (self.problems if is_problem else self.notes).append(text)


def check(
    train: ImageSet,
    evaluation: ImageSet | None = None,
    *,
    num_classes: int | None = None,
    channels: int = 3,
    limit: int | None = None,
    on_step: Step | None = None,
) -> Findings:
    """What is wrong with the images to train on, and with those to evaluate on where they are another set.

    `num_classes` and `channels` are the model's. Every image is decoded, or at most `limit` of a set, spread over its
    classes. See `Findings.refuse`.
    """
    report = _Report()
    training = look_at("training", train, limit, on_step)
    _unreadable(training, report)
    _labels(training, num_classes, report)
    _balance(training, report)
    if channels not in (1, 3):
        report.problems.append(f"the model takes {channels} channels; photos give it 1 (grey) or 3 (RGB)")
    _pixels(training, channels, report)
    _copies(training, report)
    if evaluation is not None:
        held = look_at("evaluation", evaluation, limit, on_step)
        _unreadable(held, report)
        _labels(held, num_classes or len(train.classes) or None, report)
        _pixels(held, channels, report)
        _same_classes(training, held, report)
        _leaks(training, held, report)
    return Findings(tuple(report.problems), tuple(report.notes), tuple(sorted(training.unreadable)))


def _unreadable(seen: Looked, report: _Report) -> None:
    broken = list(seen.unreadable.values())
    if len(seen.looks) + len(broken) < len(seen.images):
        report.notes.append(f"only {seen.decoded:,} of {len(seen.images):,} {seen.what} images were looked at")
    if broken:
        share = len(broken) / seen.decoded
        much = share > MAX_UNREADABLE
        what = "cannot be read" if much else "cannot be read and are left out"
        report.say(f"{seen.of(len(broken))} ({share:.1%}) {what}: {listed(broken)}", much)


def _labels(seen: Looked, num_classes: int | None, report: _Report) -> None:
    """Labels that are missing or out of range, and classes without images."""
    if not seen.has_labels:
        return
    labels, names = seen.images.labels, seen.images.classes
    missing = [n for n, label in enumerate(labels) if label is None]
    if missing:
        report.problems.append(seen.some(missing, "have no label"))
    training = seen.what == "training"
    known = len(names) or num_classes
    odd = [n for n, label in enumerate(labels) if known and label is not None and not 0 <= label < known]
    if odd:
        worst, whose = max((labels[n] or 0 for n in odd), key=abs), "the data names" if names else "the model has"
        report.problems.append(seen.some(odd, f"have labels such as {worst}, and {whose} {known} classes"))
    if training and num_classes and len(names) > num_classes:
        report.problems.append(f"the training data has {len(names)} classes, the model {num_classes}")
    there = {label for n, label in enumerate(labels) if label is not None and n not in seen.unreadable}
    empty = [name for label, name in enumerate(names) if label not in there]
    if empty:
        what = "classes have no image" + (": add some, or remove the folders" if training else " to evaluate on")
        report.say(f"{len(empty)} of {len(names)} {what}: {listed(empty)}", training)
    if len(there) == 1:
        only = seen.class_name(next(iter(there)))
        report.say(f"all {seen.what} images are of one class, {only}: there is nothing to tell apart", training)


def _balance(seen: Looked, report: _Report) -> None:
    counts = Counter(label for label in seen.images.labels if label is not None).most_common()
    if len(counts) > 1 and counts[0][1] > IMBALANCE * counts[-1][1]:
        (most, many), (fewest, few) = counts[0], counts[-1]
        report.notes.append(
            f"classes are out of balance: {many} {seen.what} images of {seen.class_name(most)}, "
            f"{few} of {seen.class_name(fewest)}"
        )


def _pixels(seen: Looked, channels: int, report: _Report) -> None:
    """Images of other channels or depth than the model's, and very small ones."""
    by_kind: dict[str, list[int]] = {}
    for number, look in seen.looks.items():
        if kind := _kind(look.mode, channels):
            by_kind.setdefault(kind, []).append(number)
    for kind, numbers in by_kind.items():
        report.say(seen.some(numbers, f"are {kind}"), kind == _WIDE)
    if small := [number for number, look in seen.looks.items() if look.side < SMALL]:
        report.notes.append(seen.some(small, f"are less than {SMALL} pixels high or wide"))
    if damaged := [number for number, look in seen.looks.items() if look.has_damaged_exif]:
        report.notes.append(seen.some(damaged, "have damaged EXIF data, and are taken as they lie"))


_WIDE = "of 32 bits a pixel, which are cut off at 255: save them with 8 or 16 bits"


def _kind(mode: str, channels: int) -> str:
    """What of an image is converted, in words; "" where nothing is."""
    if mode in ("I", "F"):
        return _WIDE
    if mode == TRANSPARENT:
        return "transparent, and their alpha is dropped, which shows the colours behind it"
    if mode.startswith("I;16"):
        return "16-bit grey, and become 8-bit"
    if mode in ("L", "1"):
        return "grey, and become RGB" if channels == 3 else ""
    if mode not in ("RGB", "P"):
        return f"{mode}, and become {'RGB' if channels == 3 else 'grey'}"
    return "" if channels == 3 else "in colour, and become grey"


def _copies(seen: Looked, report: _Report) -> None:
    by_digest: dict[bytes, list[int]] = {}
    for number, look in seen.looks.items():
        by_digest.setdefault(look.digest, []).append(number)
    copies = [numbers for numbers in by_digest.values() if len(numbers) > 1]
    labels = seen.images.labels
    agreeing = [numbers for numbers in copies if len({labels[n] for n in numbers}) == 1]
    contradicted = [numbers for numbers in copies if len({labels[n] for n in numbers}) > 1]
    if contradicted:
        total = sum(map(len, contradicted))
        pairs = (_pair(seen, n[0], seen, next(m for m in n if labels[m] != labels[n[0]])) for n in contradicted)
        text = f"{seen.of(total)} have copies with another label"
        report.say(f"{text}: {listed(pairs, len(contradicted))}", total > MAX_CONTRADICTED * seen.decoded)
    if agreeing:
        extra = sum(len(numbers) - 1 for numbers in agreeing)
        pairs = (_pair(seen, n[0], seen, n[1]) for n in agreeing)
        report.notes.append(f"{seen.of(extra)} are copies of others: {listed(pairs, len(agreeing))}")


def _leaks(training: Looked, held: Looked, report: _Report) -> None:
    known = {look.digest: number for number, look in reversed(training.looks.items())}
    leaked = [(known[look.digest], number) for number, look in held.looks.items() if look.digest in known]
    if leaked:
        share = len(leaked) / held.decoded
        pairs = (_pair(training, a, held, b) for a, b in leaked)
        text = f"{held.of(len(leaked))} ({share:.1%}) are trained on too, so accuracy may be that much too high"
        report.say(f"{text}: {listed(pairs, len(leaked))}", share > MAX_LEAKED)


def _same_classes(training: Looked, held: Looked, report: _Report) -> None:
    ours, theirs = training.images.classes, held.images.classes
    if not ours or not theirs or ours == theirs:
        return
    extra = [name for name in theirs if name not in ours]
    missing = [name for name in ours if name not in theirs]
    if extra:
        report.problems.append(f"{len(extra)} evaluation classes are not trained: {listed(extra)}")
    if missing:
        report.notes.append(f"{len(missing)} trained classes are not evaluated: {listed(missing)}")
    if not extra and not missing:
        report.notes.append("the evaluation data has the classes in another order; they are matched by name")


def _pair(one: Looked, first: int, other: Looked, second: int) -> str:
    labels = [s.class_name(s.images.labels[n]) for s, n in ((one, first), (other, second))]
    names = [one.name(first), other.name(second)]
    if labels[0] != labels[1]:
        names = [f"{name} ({label})" for name, label in zip(names, labels, strict=True)]
    return " = ".join(names)
