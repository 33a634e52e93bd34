"""The artifact's manifest: everything but the tensors, as checked JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cuecraft.backbone.weights import WeightsSpec
from cuecraft.prompts.kinds import with_others
from cuecraft.task.entry import TaskEntry

SCHEMA_VERSION = 4  # 2: deep cues, dtype of the backbone; 3: prefixes, tuned weights, shared parts; 4: several prompts
MOST_PROMPTS = 1024  # of one artifact; more is damage, or somebody's attempt to take all memory
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

    `count` prompts answer together; the rest is of the first one.
    """

    kind: PromptKind
    length: int
    text: str
    shared_sha256: str | None = None
    count: int = Field(1, ge=1, le=MOST_PROMPTS)

    @property
    def described(self) -> str:
        """Its words or description, and how many more answer with it."""
        return with_others(self.text, self.count)


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
