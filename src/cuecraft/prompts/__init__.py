"""Prompts in words, in vectors and on every layer; calibration, and the artifact that keeps them."""

from cuecraft.prompts.artifact import Artifact, check_target, load_artifact, stored_bytes
from cuecraft.prompts.calibration import Calibration
from cuecraft.prompts.kinds import AnyPrompt, DeepCue, HardPrompt, SoftPrompt

__all__ = [
    "AnyPrompt",
    "Artifact",
    "Calibration",
    "DeepCue",
    "HardPrompt",
    "SoftPrompt",
    "check_target",
    "load_artifact",
    "stored_bytes",
]
