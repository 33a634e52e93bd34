"""Serving tuned prompts: many of them, over one backbone, in one batch.

`engine.py` answers, with nothing but torch, or an exported graph without it; `http/` is the server in front of it, an
extra: ``cuecraft[serve]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.serving.artifacts import ServedPrompt, Shelf
    from cuecraft.serving.engine import Engine, EngineOptions
    from cuecraft.serving.requests import Answer, Watcher

__all__ = ["Answer", "Engine", "EngineOptions", "ServedPrompt", "Shelf", "Watcher"]

# Loaded on first use: the guard and the command line need neither engine nor torch.
_HOMES = {
    "artifacts": ("ServedPrompt", "Shelf"),
    "engine": ("Engine", "EngineOptions"),
    "requests": ("Answer", "Watcher"),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
