"""`file.py:callable` and `package.module:callable`: the user's own Python, run and asked for a module."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from edgekit.errors import BadInput, UnknownName
from edgekit.graph.capture import user_line


def call(reference: str, num_classes: int | None, seed: int) -> nn.Module:
    """The module that `place:attribute` returns, is, or constructs, under a seeded generator.

    `num_classes` is passed on if given. Raises `BadInput` or `UnknownName`, with the user's own line.
    """
    place, _, attribute = reference.rpartition(":")
    # A file may import its neighbours, a module what `python -m` finds: at once, or when it is called.
    folder = Path(place).parent if place.endswith(".py") else Path.cwd()
    with _on_path(folder.resolve()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = _find(place, attribute)
        if callable(found) and not isinstance(found, nn.Module):
            found = _call(found, reference, num_classes)
    if not isinstance(found, nn.Module):
        raise BadInput(f"{reference} gave a {type(found).__name__}, not an nn.Module", "Return the model from it.")
    return found


def takes_classes(reference: str) -> bool:
    """Whether `place:attribute` can be called with `num_classes`. Raises as `call` does."""
    place, _, attribute = reference.rpartition(":")
    folder = Path(place).parent if place.endswith(".py") else Path.cwd()
    with _on_path(folder.resolve()):
        found = _find(place, attribute)
    return callable(found) and not isinstance(found, nn.Module) and _takes_classes(found)


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it away
            sys.path.remove(str(folder))


def _find(place: str, attribute: str) -> object:
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:  # the user's own code runs here and may raise anything
        raise BadInput(f"importing {place} failed: {type(error).__name__}: {error}", _where(error)) from error
    if not hasattr(module, attribute):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UnknownName(f"callable in {place}", attribute, names)
    return getattr(module, attribute)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"there is no file {path}", "Check the path before the colon in -m.")
    # Its own name could be that of a package. The path is no part of it: exporters write it into artifacts.
    name = f"_edgekit_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, among others, look up the module of a class
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _call(function: Callable[..., object], reference: str, num_classes: int | None) -> object:
    arguments = {}
    if num_classes is not None:
        if not _takes_classes(function):
            raise BadInput(f"{reference} takes no num_classes", "Leave --num-classes out, or give it that parameter.")
        arguments["num_classes"] = num_classes
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:  # the user's own code
        raise BadInput(f"{reference} failed: {type(error).__name__}: {error}", _where(error)) from error


def _takes_classes(function: Callable[..., object]) -> bool:
    return "num_classes" in inspect.signature(function).parameters


def _where(error: BaseException) -> str:
    line = user_line(error)
    return f"at {line}" if line else "Import it with plain Python to see where."
