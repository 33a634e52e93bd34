"""Discrete methods: prompts in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.methods.search.autoprompt import AutoPrompt
    from cuecraft.methods.search.straight_through import StraightThrough

__all__ = ["AutoPrompt", "StraightThrough"]

_HOMES = {
    "autoprompt": ("AutoPrompt",),
    "straight_through": ("StraightThrough",),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
