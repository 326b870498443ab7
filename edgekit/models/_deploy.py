"""From the train form of a model to its deploy form: the same function, in operations that runtimes take well.

Only what a module says of itself is done here; what can be read off any graph is done in `edgekit.graph`.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.models._low_rank import fuse, split


def deploy(model: nn.Module) -> nn.Module:
    """A copy of `model`, a float32 one on the CPU, in eval mode and deploy form; `model` itself is left as it is.

    Every module whose class defines a method `deploy(self)` is replaced by what that returns, outermost first (what
    it returns may hold further ones). They see one layer for each pair of low rank, which is two again in the result.
    Raises `BadInput` where a model cannot be copied or `deploy` returns no module.
    """
    with torch.no_grad():
        whole, pairs = fuse(_copied(model).eval())
        old = set(whole.modules()) if pairs else set()
        deployed = _walk(whole, {}).eval()
        return split(deployed, pairs, old) if pairs else deployed


def _walk(module: nn.Module, done: dict[int, tuple[nn.Module, nn.Module]]) -> nn.Module:
    """`module` in deploy form. One that is used in two places stays one: `done` holds it, so that its id is its own."""
    if id(module) in done:
        return done[id(module)][1]
    result, seen = module, {type(module)}
    while (method := _method(result)) is not None:
        replacement = method(result)
        if not isinstance(replacement, nn.Module):
            raise BadInput(
                f"{type(result).__name__}.deploy() returned {type(replacement).__name__}, not a module",
                "edgekit calls deploy(self) for the module to export instead: return one, `self` to stay as it is.",
            )
        # A class that is its own deploy form, or that of its deploy form, is there.
        result, again = replacement, type(replacement) in seen
        if again:
            break
        seen.add(type(result))
    done[id(module)] = (module, result)
    done[id(result)] = (result, result)
    for name, child in list(result._modules.items()):
        if child is not None and (new := _walk(child, done)) is not child:
            setattr(result, name, new)
    return result


def _method(module: nn.Module) -> Callable[[nn.Module], object] | None:
    """The `deploy(self)` that a module's class defines; a child, a flag or another function of the name is none."""
    method = inspect.getattr_static(type(module), "deploy", None)
    if not inspect.isfunction(method):
        return None
    try:
        inspect.signature(method).bind(module)
    except TypeError:
        return None
    return method


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever an object in the model raises: TypeError for locks, RuntimeError for tensors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{type(model).__name__} cannot be copied{_culprit(model)}: {reason}",
            "edgekit changes a copy only. Make locks, files and tensors with a history in forward(), "
            "or give what holds them a __deepcopy__.",
        ) from error


def _culprit(model: nn.Module) -> str:
    """` because of its encoder.lock` for the first attribute that cannot be copied, or ""."""
    for name, module in model.named_modules():
        own: dict[str, Any] = {**vars(module), **module._parameters, **module._buffers}
        for attribute, held in own.items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(held)
            except Exception:
                return f" because of its {name}.{attribute}" if name else f" because of its {attribute}"
    return ""
