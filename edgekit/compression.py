"""Low-rank factors in place of linear layers, and the terms of the loss that train them: PELA.

Paper: "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", Guo et al., CVPR 2024, arXiv:2310.10700.
A layer W (out, in) becomes second(first(x)) with the truncated SVD, sqrt(S) in each factor and the bias in the second::

    W ~ B A        B (out, r), A (r, in)        r = floor(in out / (ratio (in + out)))

which has 1 / ratio of its weights. The small model is then trained with the original, frozen, as its teacher::

    L = L_task + w_f mean_l MSE(f_l, f_l^teacher) + w_p mean_l (max |B_l A_l - W_l| - 1e-3)_+^2

f_l is what layer l puts out. Of several calls of a layer in one pass, as in a recursion, each counts.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import BadInput
from edgekit.models._low_rank import LowRank, factored, is_matrix, matrix, pairs, replaced
from edgekit.models._low_rank import fuse as _fuse

# What each weight may move from the original's without a penalty.
TOLERANCE = 1e-3
# Layers with fewer inputs or outputs are no more than a few numbers wide as it is.
NARROW = 10
# Parts of a path: patches become tokens there, or a map smaller and wider.
EMBEDDINGS = ("patch_embed", "downsample", "shortcut")
HEADS = ("head", "classifier", "logits", "fc")


def rank_for(inputs: int, outputs: int, ratio: float) -> int:
    """r of the module's equations; 0 where no rank is small enough."""
    return math.floor(inputs * outputs / (ratio * (inputs + outputs)))


def low_rank(model: nn.Module, ratio: float, skip: Sequence[str] = ()) -> nn.Module:
    """A copy of `model` whose linear layers are pairs with 1 / `ratio` of the weights; `model` is left as it is.

    A 1x1 convolution with a bias is a linear layer too: no batch norm follows it. The classifier, patch embeddings and
    downsampling stay, as do layers narrower than 10, those with a weight that others share, and what `skip` names: a
    path, all below it, or a pattern of the shell. Raises `BadInput` for a ratio that is not above 1, a pattern without
    a layer, a model that has pairs already, or none that could be one.
    """
    if not (math.isfinite(ratio) and ratio > 1):
        raise BadInput(f"the ratio is above 1, not {ratio:g}", "Layers get 1 / ratio of their weights: --ratio 2.")
    if found := pairs(model):
        raise BadInput(
            f"{len(found)} layers of the model are pairs of low rank already, as {next(iter(found))}",
            "Start from the original weights, with another ratio.",
        )
    chosen = layers(model, skip)
    ranks = {n: rank_for(matrix(m).shape[1], matrix(m).shape[0], ratio) for n, m in chosen.items()}
    ranks = {name: rank for name, rank in ranks.items() if rank > 0}
    if not ranks:
        raise BadInput(
            f"{type(model).__name__} has no linear layer that two smaller ones could stand for at ratio {ratio:g}"
            if chosen
            else f"{type(model).__name__} has no linear layer to factor beside its classifier",
            "Lower the ratio." if chosen else "It is for transformers: see `edgekit models`.",
        )
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    return replaced(small, {modules[name]: factored(modules[name], rank) for name, rank in ranks.items()})


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` with one layer for each pair, of the same function: its state is the original's in form."""
    return _fuse(copy.deepcopy(model))[0]


def layers(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The layers that `low_rank` may factor, by their paths. Raises `BadInput` for weights or a `skip` of none."""
    linear = {n: m for n, m in model.named_modules() if is_matrix(m) and (type(m) is nn.Linear or m.bias is not None)}
    for pattern in skip:
        if not any(_named(name, pattern) for name in linear):
            raise BadInput(
                f"--skip {pattern!r} names no linear layer of the model",
                f"Its first are {', '.join(list(linear)[:3])}." if linear else "It has none.",
            )
    heads, shared = _heads(linear), _shared(model)
    kept = {
        name: layer
        for name, layer in linear.items()
        if name not in heads
        and min(matrix(layer).shape) >= NARROW
        and layer.weight not in shared
        and not any(part in name for part in EMBEDDINGS)
        and not any(_named(name, pattern) for pattern in skip)
    }
    for name, layer in kept.items():
        if not matrix(layer).isfinite().all():
            raise BadInput(f"the weights of {name} hold values that are no numbers", "Give an earlier checkpoint.")
    return kept


def _heads(linear: Mapping[str, nn.Module]) -> set[str]:
    """The last layer, and those of a classifier's name that are as wide."""
    if not linear:
        return set()
    last = list(linear)[-1]
    classes = matrix(linear[last]).shape[0]
    named = {n for n in linear if any(part.endswith(HEADS) for part in n.split("."))}
    return {last} | {n for n in named if matrix(linear[n]).shape[0] == classes}


def _shared(model: nn.Module) -> set[Any]:
    """The parameters that more than one module has: an embedding tied to a projection."""
    seen: dict[Any, int] = defaultdict(int)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                seen[parameter] += 1
    return {parameter for parameter, count in seen.items() if count > 1}


def _named(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


@torch.no_grad()
def errors(small: nn.Module, original: nn.Module) -> dict[str, float]:
    """|W - B A| / |W| in the Frobenius norm, of each pair of `small` and the layer of `original` it stands for."""
    return {
        name: float((layer.weight - pair.weight).norm() / layer.weight.norm().clamp(min=1e-30))
        for name, (pair, layer) in _matched(small, original).items()
    }


def _matched(small: nn.Module, original: nn.Module) -> dict[str, tuple[LowRank, Any]]:
    """Each pair and the original's layer. Raises `BadInput` where a model is not the other's original."""
    modules, matched = dict(original.named_modules()), {}
    for name, pair in pairs(small).items():
        layer: Any = modules.get(name)
        if layer is None or not is_matrix(layer) or layer.weight.shape != pair.weight.shape:
            raise BadInput(
                f"the teacher has no layer {name} of {pair.in_features} to {pair.out_features}",
                "Features are compared with those of the model that was made smaller: give that one.",
            )
        matched[name] = (pair, layer)
    if not matched:
        raise BadInput("the model has no pairs of low rank", "Make it smaller first: low_rank(model, ratio).")
    return matched


class LowRankTerms:
    """The two terms of the module's equations, for a training loop: run both models on a batch, then call `loss()`.

    Hooks take what the pairs of `student` and the same layers of `teacher` put out, in train mode and where gradients
    are recorded for the student, in its other passes nothing; `close`, or the end of a `with`, takes them off. The
    teacher is put into eval mode and needs no gradients from here on. A student that was wrapped (DDP, Fabric) is given
    as it was before. Raises `BadInput` where `teacher` is not the original of `student`.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, feature_weight: float = 1.0, perturbation_weight: float = 0.0
    ) -> None:
        self._feature_weight, self._perturbation_weight = feature_weight, perturbation_weight
        self._pairs = _matched(student, teacher)
        self._seen: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        self._handles = []
        teacher.eval().requires_grad_(False)
        for name, (pair, layer) in self._pairs.items() if feature_weight else ():
            self._handles.append(pair.register_forward_hook(_recorder(self._seen[0], name, training=True)))
            self._handles.append(layer.register_forward_hook(_recorder(self._seen[1], name, training=False)))

    def __enter__(self) -> "LowRankTerms":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off both models."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def clear(self) -> None:
        """Forget the outputs of passes that are of no use: a teacher that was evaluated."""
        for seen in self._seen:
            seen.clear()

    def loss(self) -> Tensor:
        """The weighted sum of the two terms for the passes since the last call, in float32: a scalar."""
        total = torch.zeros((), device=self._device)
        if self._feature_weight:
            total = total + self._feature_weight * self._features()
        if self._perturbation_weight:
            total = total + self._perturbation_weight * self._perturbation()
        return total

    def _features(self) -> Tensor:
        students, teachers = self._seen
        counts = {name: (len(students.get(name, ())), len(teachers.get(name, ()))) for name in self._pairs}
        used = [name for name, count in counts.items() if any(count)]
        odd = [name for name in used if counts[name][0] != counts[name][1]]
        if odd or not used:
            name = odd[0] if odd else next(iter(self._pairs))
            self.clear()
            raise RuntimeError(
                f"between two calls of loss() student and teacher each see the same batch once: {name} ran "
                f"{counts[name][0]} times in the student and {counts[name][1]} times in the teacher"
            )
        terms = [
            torch.stack(
                [F.mse_loss(s.float(), t.float()) for s, t in zip(students[name], teachers[name], strict=True)]
            ).mean()
            for name in used
        ]
        self.clear()
        return torch.stack(terms).mean()

    def _perturbation(self) -> Tensor:
        # A product in 16 bits is coarser than the tolerance.
        with torch.autocast(self._device.type, enabled=False):
            terms = [
                ((pair.weight - layer.weight).abs().amax() - TOLERANCE).clamp(min=0).square()
                for pair, layer in self._pairs.values()
            ]
        return torch.stack(terms).mean()

    @property
    def _device(self) -> torch.device:
        return next(matrix(layer).device for _, layer in self._pairs.values())


Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], None]


def _recorder(seen: dict[str, list[Tensor]], name: str, training: bool) -> Hook:
    """A plain function: a copy of the model (an average of its weights, a deploy form) copies no more than it."""

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not training:
            seen.setdefault(name, []).append(output.detach())
        elif module.training and torch.is_grad_enabled():
            seen.setdefault(name, []).append(output)

    return record
