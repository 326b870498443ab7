"""Layers of a rank below their width, as two: W = B A with A (r, in) and B (out, r), r (in + out) < in out.

PELA (Guo et al., CVPR 2024, arXiv:2310.10700) makes them of trained layers; `edgekit.compression` is that method. Here
is what a model made of them needs: the layer, its place in a weights file, and its deploy form.

In a weights file a pair is `<layer>.first.weight`, `<layer>.second.weight` and `.bias`: the names and shapes alone say
which layers are pairs, and of which rank.

Deploy forms are written for whole layers: they split, scale and reorder rows and columns, and fold norms. Each of these
keeps the rank. So `fuse` makes one layer of each pair, the deploy form is made, and `split` finds the pairs again: a
layer that came through as it was gets its own, a new one is factored where its rank is low up to float32's rounding.
Of several layers in one module whose rows span one space, as queries, keys and values split from one pair, the first
factor is one layer that all have.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Rounding the entries of a matrix to float32 leaves singular values of about 1e-7 of the largest; scaling its rows and
# columns by norms raises that a little.
ROUNDING = 2e-6


class LowRank(nn.Module):
    """second(first(x)), two linear layers or two 1x1 convolutions; the bias is the second's.

    `in_features`, `out_features`, `weight` and `bias` are those of the layer that the pair stands for.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.training = first.training

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    @property
    def rank(self) -> int:
        return matrix(self.first).shape[0]

    @property
    def in_features(self) -> int:
        return matrix(self.first).shape[1]

    @property
    def out_features(self) -> int:
        return matrix(self.second).shape[0]

    @property
    def weight(self) -> Tensor:
        """B A in the shape of the layer's weight, differentiable."""
        product = matrix(self.second) @ matrix(self.first)
        return product if isinstance(self.first, nn.Linear) else product[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        return _bias(self.second)

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """One layer of the same function."""
        return _layer(self.first, matrix(self.second).double() @ matrix(self.first).double(), self.bias)


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a matrix W (out, in), in float64: `values` fall."""

    weight: Tensor
    vectors: Tensor
    values: Tensor
    wide: bool

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        return max(1, int((self.values > ROUNDING * self.values[0]).sum()))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """B (out, r) and A (r, in), the product nearest to W (Eckart and Young 1936), sqrt(S) in each."""
        basis, root = self.vectors[:, :rank], self.values[:rank].clamp(min=1e-30).sqrt()
        if self.wide:
            return basis * root, (basis.T @ self.weight) / root[:, None]
        return (self.weight @ basis) / root, (basis * root).T

    def row_space(self) -> Tensor:
        """An orthonormal basis (rank, in) of the rows."""
        rows = self.factors(self.rank)[1]
        return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)

    def lies_in(self, rows: Tensor) -> bool:
        """Whether the rows of W are combinations of the orthonormal `rows`, up to rounding."""
        outside = self.weight - (self.weight @ rows.T) @ rows
        return bool(outside.norm() <= ROUNDING * self.weight.norm())


@torch.no_grad()
def spectrum(weight: Tensor) -> Spectrum:
    """From the eigenvectors of the smaller one of W W^T and W^T W, which takes a seventh of an SVD's time.

    In float64 that resolves singular values down to 1e-7 of the largest, as far as float32 weights go.
    """
    wide = weight.shape[0] <= weight.shape[1]
    weight = weight.detach().cpu().double()
    squares, vectors = torch.linalg.eigh(weight @ weight.T if wide else weight.T @ weight)
    return Spectrum(weight, vectors.flip(1), squares.flip(0).clamp(min=0).sqrt(), wide)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer or a 1x1 convolution that is one, with nothing hung on to it."""
    if type(module) is nn.Conv2d:
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        if not plain or module.padding not in ((0, 0), "valid", "same"):
            return False
    elif type(module) is not nn.Linear:
        return False
    return module._parameters.get("weight") is not None


def matrix(layer: Any) -> Tensor:
    """The weight (out, in) of a linear layer or 1x1 convolution."""
    weight: Tensor = layer.weight
    return weight if weight.dim() == 2 else weight.flatten(1)


def _bias(layer: Any) -> Tensor | None:
    return layer.bias


def wins(rank: int, inputs: int, outputs: int) -> bool:
    """Whether two factors are smaller than their product."""
    return 0 < rank * (inputs + outputs) < inputs * outputs


def factored(layer: nn.Module, rank: int) -> LowRank:
    """The pair of rank `rank` nearest to the layer."""
    outer, inner = spectrum(matrix(layer)).factors(rank)
    return LowRank(_layer(layer, inner, None), _layer(layer, outer, _bias(layer)))


def pairs(model: nn.Module) -> dict[str, LowRank]:
    """The pairs of a model by their paths."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


def replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`model` with modules changed for others wherever they are, in place."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def adapt(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make pairs of the layers that are pairs in `state`, in place and with any values; what cannot be one stays."""
    modules = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {}
    for key, value in state.items():
        layer = modules.get(key.removesuffix(".first.weight"))
        if not key.endswith(".first.weight") or layer is None or not is_matrix(layer) or value.dim() < 2:
            continue
        outputs, inputs = matrix(layer).shape
        if len(value):
            first, second = torch.zeros(len(value), inputs), torch.zeros(outputs, len(value))
            new[layer] = LowRank(_layer(layer, first, None), _layer(layer, second, _bias(layer)))
    replaced(model, new)


def fuse(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, LowRank]]:
    """`model` with one layer for each pair, changed in place, and the pair that each of them was."""
    whole: dict[nn.Module, nn.Module] = {pair: pair.fused() for pair in pairs(model).values()}
    were = {layer: pair for pair, layer in whole.items() if isinstance(pair, LowRank)}
    return replaced(model, whole), were


def split(model: nn.Module, were: Mapping[nn.Module, LowRank], old: Iterable[nn.Module]) -> nn.Module:
    """`model`, in place, with pairs where they are smaller: those of `were`, and of layers that are not in `old`."""
    # A deploy form may write into a layer too.
    kept = {layer: pair for layer, pair in were.items() if _same(layer, pair.fused())}
    known = (set(old) - set(were)) | set(kept)
    new: dict[nn.Module, nn.Module] = {
        layer: pair for layer, pair in kept.items() if wins(pair.rank, pair.in_features, pair.out_features)
    }
    for parent in list(model.modules()):
        groups: dict[tuple[type[nn.Module], int], list[nn.Module]] = {}
        for child in dict.fromkeys(parent.children()):
            if child not in known and is_matrix(child):
                groups.setdefault((type(child), matrix(child).shape[1]), []).append(child)
        for group in groups.values():
            new.update(_factored_group(group))
    return replaced(model, new)


def _same(layer: Any, other: Any) -> bool:
    given, expected = (module.state_dict() for module in (layer, other))
    return given.keys() == expected.keys() and all(torch.equal(given[k], expected[k]) for k in given)


def _factored_group(layers: list[nn.Module]) -> dict[nn.Module, LowRank]:
    """Pairs for the layers of one input width where that is smaller, with one first factor for rows of one space."""
    new: dict[nn.Module, LowRank] = {}
    left = sorted(((layer, spectrum(matrix(layer))) for layer in layers), key=lambda item: -item[1].rank)
    while left:
        (layer, widest), rest = left[0], left[1:]
        rows = widest.row_space()
        alike = [(layer, widest)] + [(m, s) for m, s in rest if s.lies_in(rows)]
        left = [item for item in rest if not any(item[0] is m for m, _ in alike)]
        apart = sum(min(s.rank * sum(s.weight.shape), s.weight.numel()) for _, s in alike)
        if len(rows) * (rows.shape[1] + sum(len(s.weight) for _, s in alike)) < apart:
            first = _layer(layer, rows, None)
            new |= {m: LowRank(first, _layer(m, s.weight @ rows.T, _bias(m))) for m, s in alike}
        else:
            new |= {m: factored(m, s.rank) for m, s in alike if wins(s.rank, *s.weight.shape)}
    return new


def _layer(like: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the kind, type and device of `like` with the values given; it trains."""
    outputs, inputs = weight.shape
    options = {"bias": bias is not None, "device": like.weight.device, "dtype": like.weight.dtype}
    # No start values: they would be drawn from the caller's random numbers.
    if isinstance(like, nn.Linear):
        new = nn.utils.skip_init(nn.Linear, inputs, outputs, **options)
    else:
        new = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 1, **options)
    with torch.no_grad():
        new.weight.copy_(weight.reshape(new.weight.shape))
        if bias is not None:
            new.bias.copy_(bias)
    return new.train(like.training)
