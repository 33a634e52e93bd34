"""cuecraft: automated prompt tuning for frozen language models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cuecraft.core.errors import CuecraftError, CuecraftWarning
from cuecraft.core.lazy import loaded_on_use

# Threads of OpenMP that wait by spinning take a core from other processes and from the thread they wait for: with one
# busy process on two cores a training took three times as long. OpenMP reads this once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from cuecraft.api.classic import AutoPrompt, PrefixTuning
    from cuecraft.api.estimators import PromptClassifier, PromptRegressor
    from cuecraft.api.family import PromptFamily
    from cuecraft.artifact import load_artifact
    from cuecraft.artifact.predictor import PromptEnsemble
    from cuecraft.backbone import load_backbone
    from cuecraft.export.runtime import ExportedClassifier
    from cuecraft.serving.guard import Guard
    from cuecraft.task import Task, Template, Verbalizer

__version__ = "0.1.0"

__all__ = [
    "AutoPrompt",
    "CuecraftError",
    "CuecraftWarning",
    "ExportedClassifier",
    "Guard",
    "PrefixTuning",
    "PromptClassifier",
    "PromptEnsemble",
    "PromptFamily",
    "PromptRegressor",
    "Task",
    "Template",
    "Verbalizer",
    "load_artifact",
    "load_backbone",
]

# Loaded on first use, so that `import cuecraft` does not wait for torch.
_HOMES = {
    "api.classic": ("AutoPrompt", "PrefixTuning"),
    "api.estimators": ("PromptClassifier", "PromptRegressor"),
    "api.family": ("PromptFamily",),
    "artifact": ("load_artifact",),
    "artifact.predictor": ("PromptEnsemble",),
    "backbone": ("load_backbone",),
    "export.runtime": ("ExportedClassifier",),
    "serving.guard": ("Guard",),
    "task": ("Task", "Template", "Verbalizer"),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
