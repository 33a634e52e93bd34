"""Prompts in words and in vectors, calibration, and the artifact that keeps them."""

from cuecraft.prompts.artifact import Artifact, check_target, load_artifact, stored_bytes
from cuecraft.prompts.calibration import Calibration
from cuecraft.prompts.kinds import AnyPrompt, HardPrompt, SoftPrompt

__all__ = [
    "AnyPrompt",
    "Artifact",
    "Calibration",
    "HardPrompt",
    "SoftPrompt",
    "check_target",
    "load_artifact",
    "stored_bytes",
]
