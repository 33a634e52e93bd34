"""Continuous methods, the hybrid of words and vectors, and the registry of all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.tune.deep_cue import DeepCueTuning
    from cuecraft.tune.hybrid import Hybrid
    from cuecraft.tune.prompt_tuning import PromptTuning
    from cuecraft.tune.registry import METHODS, make_method
    from cuecraft.tune.zero_shot import ZeroShot

__all__ = ["METHODS", "DeepCueTuning", "Hybrid", "PromptTuning", "ZeroShot", "make_method"]

_HOMES = {
    "DeepCueTuning": "deep_cue",
    "Hybrid": "hybrid",
    "METHODS": "registry",
    "PromptTuning": "prompt_tuning",
    "ZeroShot": "zero_shot",
    "make_method": "registry",
}

__getattr__ = loaded_on_use(__name__, _HOMES)
