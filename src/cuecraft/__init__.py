"""cuecraft: automated prompt tuning for frozen language models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cuecraft.errors import CuecraftError, CuecraftWarning
from cuecraft.lazy import loaded_on_use

# Threads of OpenMP that wait by spinning take a core from other processes and from the thread they wait for: with one
# busy process on two cores a training took three times as long. OpenMP reads this once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
    "AutoPrompt": "classic",
    "PrefixTuning": "classic",
    "PromptClassifier": "classifier",
    "Task": "task",
    "Template": "task",
    "Verbalizer": "task",
    "load_artifact": "prompts",
    "load_backbone": "backbone",
}

__getattr__ = loaded_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
