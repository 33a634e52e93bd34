"""Serving tuned prompts: many of them, over one backbone, in one batch.

`engine.py` answers, with nothing but torch, or an exported graph without it; `http/` is the server in front of it, an
extra: ``cuecraft[serve]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cuecraft.serve.engine import Engine, EngineOptions
from cuecraft.serve.requests import Answer, Watcher

if TYPE_CHECKING:
    from cuecraft.serve.shelf import ServedPrompt, Shelf

__all__ = ["Answer", "Engine", "EngineOptions", "ServedPrompt", "Shelf", "Watcher"]


def __getattr__(name: str) -> Any:
    if name in ("ServedPrompt", "Shelf"):  # these need torch
        return getattr(import_module("cuecraft.serve.shelf"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
