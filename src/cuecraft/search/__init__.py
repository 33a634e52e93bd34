"""Discrete methods: prompts in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.search.autoprompt import AutoPrompt
    from cuecraft.search.straight_through import StraightThrough

__all__ = ["AutoPrompt", "StraightThrough"]

__getattr__ = loaded_on_use(__name__, {"AutoPrompt": "autoprompt", "StraightThrough": "straight_through"})
