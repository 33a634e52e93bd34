"""Serving tuned prompts: many of them, over one backbone, in one batch.

`engine.py` answers, with nothing but torch; `http/` is the server in front of it, an extra: ``cuecraft[serve]``.
"""

from cuecraft.serve.engine import Engine, EngineOptions
from cuecraft.serve.requests import Answer, Watcher
from cuecraft.serve.shelf import ServedPrompt, Shelf

__all__ = ["Answer", "Engine", "EngineOptions", "ServedPrompt", "Shelf", "Watcher"]
