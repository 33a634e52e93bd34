"""Discrete methods: prompts in words."""

from cuecraft.search.autoprompt import AutoPrompt
from cuecraft.search.straight_through import StraightThrough

__all__ = ["AutoPrompt", "StraightThrough"]
