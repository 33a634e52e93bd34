"""The artifact's manifest: everything but the tensors, as checked JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cuecraft.backbone.weights import WeightsSpec
from cuecraft.task.entry import TaskEntry

SCHEMA_VERSION = 4  # 2: deep cues, dtype of the backbone; 3: prefixes, tuned weights, shared parts; 4: several prompts
PromptKind = Literal["hard", "soft", "deep", "prefix"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneEntry(_Part):
    """Which frozen model the prompt was made for."""

    name: str
    head: str
    sha256: str
    hidden_size: int
    dtype: str = "float32"  # of the weights while tuning; version 1 had no other


class PromptEntry(_Part):
    """The prompt: its kind, its length in tokens, its words or a description, and the hash of what tasks share.

    `count` prompts answer together; kind and length are the first one's.
    """

    kind: PromptKind
    length: int
    text: str
    shared_sha256: str | None = None
    count: int = 1


class CalibrationEntry(_Part):
    """``scale * logits + bias``."""

    bias: list[float]
    scale: float


class DataEntry(_Part):
    """How many rows of a split were used, and their hash."""

    rows: int
    sha256: str


class Manifest(_Part):
    """What `manifest.json` holds. It carries no times, so that the same run gives the same bytes."""

    schema_version: int = SCHEMA_VERSION
    method: str
    method_options: dict[str, Any]
    seed: int
    backbone: BackboneEntry
    task: TaskEntry
    prompt: PromptEntry
    weights: WeightsSpec | None = None
    words: str | None
    calibration: CalibrationEntry
    metrics: dict[str, float]
    data: dict[str, DataEntry]
    versions: dict[str, str]
    files: dict[str, str]
    artifact_sha256: str = ""
