"""Names of a package that are loaded on first use, so that importing it does not wait for what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


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
