"""From the train form of a model to its deploy form: the same function, cheaper."""

import copy
from collections import Counter
from itertools import pairwise

import torch
from torch import nn


def deploy(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode and deploy form; `model` itself is left as it is.

    Every module with a `deploy()` method is replaced by what that returns, outermost first (what it returns may hold
    further ones), and every batch norm that directly follows a convolution in an `nn.Sequential` is folded into it:
    BN(W x + b) = (W s) x + (b - mean) s + beta with s = gamma / sqrt(var + eps).
    """
    with torch.no_grad():
        copied = copy.deepcopy(model).eval()
        # A convolution or norm that a model uses in two places cannot take the norm of one of them.
        uses = Counter(id(module) for _, module in copied.named_modules(remove_duplicate=False))
        return _walk(copied, uses).eval()


def _walk(module: nn.Module, uses: Counter[int]) -> nn.Module:
    while callable(method := getattr(module, "deploy", None)):
        replacement = method()
        if not isinstance(replacement, nn.Module):
            raise TypeError(f"{type(module).__name__}.deploy() returned {type(replacement).__name__}, not a module")
        module = replacement
    if isinstance(module, nn.Sequential):
        _fold_norms(module, uses)
    for name, child in module.named_children():
        setattr(module, name, _walk(child, uses))
    return module


def _fold_norms(sequence: nn.Sequential, uses: Counter[int]) -> None:
    """Fold each Conv2d, BatchNorm2d pair of neighbours into its convolution; an identity keeps the numbering."""
    names = list(sequence._modules)
    for first, second in pairwise(names):
        conv, norm = sequence._modules[first], sequence._modules[second]
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_var is not None and uses[id(conv)] <= 1 and uses[id(norm)] <= 1:
            fold_batch_norm(conv, norm)
            sequence._modules[second] = nn.Identity()


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Change `conv` into conv followed by `norm` in eval mode; exact up to rounding."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics depends on the batch and cannot be folded")
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), conv.weight.requires_grad)
