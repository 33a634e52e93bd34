"""Prompts in words, in vectors and on every layer; calibration, and the artifact that keeps them."""

from cuecraft.prompts.artifact import Artifact, check_target, load_artifact, stored_bytes
from cuecraft.prompts.calibration import Calibration
from cuecraft.prompts.kinds import AnyPrompt, DeepCue, HardPrompt, PrefixPrompt, SoftPrompt, with_head

__all__ = [
    "AnyPrompt",
    "Artifact",
    "Calibration",
    "DeepCue",
    "HardPrompt",
    "PrefixPrompt",
    "SoftPrompt",
    "check_target",
    "load_artifact",
    "stored_bytes",
    "with_head",
]
