"""Prompts in words, in vectors and on every layer; calibration, and the artifact that keeps them."""

from cuecraft.prompts.artifact import (
    Artifact,
    StoredWeights,
    check_target,
    check_writable,
    load_artifact,
    member_folders,
    stored_bytes,
)
from cuecraft.prompts.calibration import CalibratedPrompt, Calibration
from cuecraft.prompts.kinds import (
    AnyPrompt,
    DeepCue,
    HardPrompt,
    PrefixPrompt,
    SoftPrompt,
    with_head,
    with_others,
)
from cuecraft.prompts.shared import Sharing, TaskPart, shared_file

__all__ = [
    "AnyPrompt",
    "Artifact",
    "CalibratedPrompt",
    "Calibration",
    "DeepCue",
    "HardPrompt",
    "PrefixPrompt",
    "Sharing",
    "SoftPrompt",
    "StoredWeights",
    "TaskPart",
    "check_target",
    "check_writable",
    "load_artifact",
    "member_folders",
    "shared_file",
    "stored_bytes",
    "with_head",
    "with_others",
]
