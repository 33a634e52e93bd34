"""The artifact's manifest: everything but the tensors, as checked JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cuecraft.backbone.weights import WeightsSpec
from cuecraft.prompts.calibration import Calibration
from cuecraft.prompts.kinds import with_others
from cuecraft.task.entry import TaskEntry

# 2: deep cues, dtype of the backbone; 3: prefixes, tuned weights, shared parts; 4: several prompts; 5: a calibration
# of each of them; 6: examples in front of every text, all or the nearest; 7: the turns of a chat template; 8: class
# heads on features of unit length.
SCHEMA_VERSION = 8
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

    @classmethod
    def of(cls, calibration: Calibration) -> CalibrationEntry:
        """Return what stands for a calibration in the manifest."""
        return cls(bias=list(calibration.bias), scale=calibration.scale)

    def calibration(self) -> Calibration:
        """Return the calibration that stands here."""
        return Calibration(tuple(self.bias), self.scale)


class DataEntry(_Part):
    """How many rows of a split were used, and their hash."""

    rows: int
    sha256: str


class Manifest(_Part):
    """What `manifest.json` holds. It carries no times, so that the same run gives the same bytes.

    `calibration` is of the first prompt, `other_calibrations` of each prompt that answers with it, in order. Up to
    version 4 there were no others: all prompts had the first one's.
    """

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
    other_calibrations: list[CalibrationEntry] = []
    metrics: dict[str, float]
    data: dict[str, DataEntry]
    versions: dict[str, str]
    files: dict[str, str]
    artifact_sha256: str = ""

    @property
    def calibrations(self) -> list[CalibrationEntry]:
        """The calibration of each prompt, in order; KeyError where there are more or fewer than prompts."""
        count = self.prompt.count
        if self.schema_version < 5 and not self.other_calibrations:
            return [self.calibration] * count
        if len(self.other_calibrations) != count - 1:
            raise KeyError(f"other_calibrations: {len(self.other_calibrations)} for {count - 1} further prompts")
        return [self.calibration, *self.other_calibrations]
