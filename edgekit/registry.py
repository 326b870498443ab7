"""A read-only mapping from names (and aliases) to things, built from a literal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from edgekit.errors import UnknownName


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Look up by name or alias; an unknown name raises `UnknownName` with close matches."""

    def __init__(self, kind: str, items: Iterable[T], aliases: Mapping[str, str] | None = None) -> None:
        self._kind = kind
        self._items: dict[str, T] = {}
        for item in items:
            if item.name in self._items:
                raise ValueError(f"two {kind}s are named {item.name!r}")
            self._items[item.name] = item
        self._aliases = dict(aliases or {})
        for alias, name in self._aliases.items():
            if alias in self._items or name not in self._items:
                raise ValueError(f"alias {alias!r} of {kind} {name!r} hides a {kind} or leads nowhere")

    def __getitem__(self, name: str) -> T:
        name = self._aliases.get(name, name)
        if name not in self._items:
            raise UnknownName(self._kind, name, [*self._items, *self._aliases])
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
