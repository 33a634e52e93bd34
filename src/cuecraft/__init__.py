"""cuecraft: automated prompt tuning for frozen language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cuecraft.errors import CuecraftError, CuecraftWarning

if TYPE_CHECKING:
    from cuecraft.backbone import load_backbone
    from cuecraft.classic import AutoPrompt, PrefixTuning
    from cuecraft.classifier import PromptClassifier
    from cuecraft.prompts import load_artifact
    from cuecraft.task import Task, Template, Verbalizer

__version__ = "0.1.0"

__all__ = [
    "AutoPrompt",
    "CuecraftError",
    "CuecraftWarning",
    "PrefixTuning",
    "PromptClassifier",
    "Task",
    "Template",
    "Verbalizer",
    "load_artifact",
    "load_backbone",
]

# Loaded on first use, so that `import cuecraft` does not wait for torch.
_HOMES = {
    "AutoPrompt": "cuecraft.classic",
    "PrefixTuning": "cuecraft.classic",
    "PromptClassifier": "cuecraft.classifier",
    "Task": "cuecraft.task",
    "Template": "cuecraft.task",
    "Verbalizer": "cuecraft.task",
    "load_artifact": "cuecraft.prompts",
    "load_backbone": "cuecraft.backbone",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cuecraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
