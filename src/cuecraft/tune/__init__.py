"""Continuous methods, the hybrid of words and vectors, and the registry of all methods."""

from cuecraft.tune.deep_cue import DeepCueTuning
from cuecraft.tune.hybrid import Hybrid
from cuecraft.tune.prompt_tuning import PromptTuning
from cuecraft.tune.registry import METHODS, make_method
from cuecraft.tune.zero_shot import ZeroShot

__all__ = ["METHODS", "DeepCueTuning", "Hybrid", "PromptTuning", "ZeroShot", "make_method"]
