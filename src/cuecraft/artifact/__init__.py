"""A tuned prompt on disk: artifact, manifest and calibration; and what answers with it."""

from cuecraft.artifact.artifact import (
    Artifact,
    StoredWeights,
    check_target,
    check_writable,
    load_artifact,
    member_folders,
    stored_bytes,
)
from cuecraft.artifact.calibration import CalibratedPrompt, Calibration
from cuecraft.artifact.shared import Sharing, TaskPart, shared_file
from cuecraft.backbone.prompt import DeepCue, HardPrompt, PrefixPrompt, Prompt, SoftPrompt, with_others

__all__ = [
    "Artifact",
    "CalibratedPrompt",
    "Calibration",
    "DeepCue",
    "HardPrompt",
    "PrefixPrompt",
    "Prompt",
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
    "with_others",
]
