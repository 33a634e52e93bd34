"""Names that are loaded on first use, so that importing a package, or listing what there is, does not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


def loaded_on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562).

    Args:
        package: its name.
        homes: each name, and the module of the package that has it.
    """

    def load(name: str) -> Any:
        if name in homes:
            place = f"{package}.{homes[name]}"
            try:
                module = import_module(place)
            except AttributeError as error:  # which would read as: the package has no such name
                raise ImportError(f"{place} cannot be imported: {error}") from error
            return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


class Registry(MutableMapping[str, type[T]]):
    """Classes by name, in the order in which they are shown; a class's module is imported when the class is asked for.

    Args:
        homes: `module:Class` of each, by name.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._found: dict[str, str | type[T]] = dict(homes)

    def __getitem__(self, name: str) -> type[T]:
        """Return a class, imported now if it was not before."""
        found = self._found[name]
        if isinstance(found, str):
            module, _, kind = found.partition(":")
            own: type[T] = getattr(import_module(module), kind)
            self._found[name] = found = own
        return found

    def __setitem__(self, name: str, kind: type[T]) -> None:
        """Add a class, or replace the one of that name."""
        self._found[name] = kind

    def __delitem__(self, name: str) -> None:
        """Remove a class."""
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names; nothing is imported."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return how many classes there are."""
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a class of that name; nothing is imported."""
        return name in self._found
