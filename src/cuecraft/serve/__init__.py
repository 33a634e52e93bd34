"""Serving tuned prompts: many of them, over one backbone, in one batch.

`engine.py` answers, with nothing but torch, or an exported graph without it; `http/` is the server in front of it, an
extra: ``cuecraft[serve]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use
from cuecraft.serve.engine import Engine, EngineOptions
from cuecraft.serve.requests import Answer, Watcher

if TYPE_CHECKING:
    from cuecraft.serve.shelf import ServedPrompt, Shelf

__all__ = ["Answer", "Engine", "EngineOptions", "ServedPrompt", "Shelf", "Watcher"]

__getattr__ = loaded_on_use(__name__, dict.fromkeys(("ServedPrompt", "Shelf"), "shelf"))  # these need torch
