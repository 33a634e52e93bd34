"""The artifact's manifest, all but the tensors as checked JSON; and the model card made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cuecraft.artifact.calibration import Calibration
from cuecraft.backbone.prompt import PromptKind, with_others
from cuecraft.backbone.weights import WeightsSpec
from cuecraft.task.task import TaskEntry

if TYPE_CHECKING:
    from cuecraft.backbone import AnyBackbone

# 2: deep cues, dtype of the backbone; 3: prefixes, tuned weights, shared parts; 4: several prompts; 5: a calibration
# of each of them; 6: examples in front of every text, all or the nearest; 7: the turns of a chat template, class heads
# on features of unit length; 8: the answer space in place of classes and label words,
# and words that are normalised over their siblings.
SCHEMA_VERSION = 8
MOST_PROMPTS = 1024  # of one artifact; more is damage, or somebody's attempt to take all memory
#: Key of an event of the trace: what users of the prompt have to know.
CAVEAT = "caveat"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneEntry(_Part):
    """Which frozen model the prompt was made for."""

    name: str
    head: str
    sha256: str
    hidden_size: int
    dtype: str = "float32"  # of the weights while tuning; version 1 had no other

    @classmethod
    def of(cls, backbone: AnyBackbone) -> BackboneEntry:
        """Return the entry of a backbone."""
        return cls(
            name=backbone.name,
            head=backbone.head_kind,
            sha256=backbone.fingerprint(),
            hidden_size=backbone.hidden_size,
            dtype=backbone.dtype_name,
        )


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


def model_card(manifest: Manifest, trace: Sequence[Mapping[str, Any]] = (), reads_words: bool = True) -> str:
    """Return the artifact's README in Markdown, with the caveats of its trace first.

    Label words are named where they are read (`reads_words`): a class head has none.
    """
    caveats = "".join(f"\n**Warning: {event[CAVEAT]}.**\n" for event in trace if CAVEAT in event)
    task, backbone, prompt = manifest.task, manifest.backbone, manifest.prompt
    kind, options = task.answers.kind, task.answers.options
    words = [f"| {name} | {', '.join(words)} |" for name, words in options.items()]
    table = ["", "| class | label words |", "| --- | --- |", *words] if options else []
    classes = table if reads_words else ["", f"Classes, by a class head: {', '.join(options)}"] if options else []
    of_kind = "with the labels above and no others" if kind == "labels" else f"with answers of kind {kind}"
    answers = "" if kind == "labels" else f"- answers: {kind}\n"
    metrics = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in manifest.metrics.items()]
    data = [f"| {name} | {split.rows} | `{split.sha256[:16]}` |" for name, split in manifest.data.items()]
    found = f"\nFound on the way, in words: `{manifest.words!r}`\n" if manifest.words else ""
    nearest = f"the {task.nearest} nearest of " if task.nearest else ""
    shots = f"- in front of every text: {nearest}{len(task.shots)} labelled examples (`task.shots` in manifest.json)\n"
    examples = shots if task.shots else ""
    count = f"\n{prompt.count} prompts answer together, this one and others: their probabilities are averaged.\n"
    together = count if prompt.count > 1 else ""
    measured = ["| measured | |", "| --- | --- |", *metrics, ""] if metrics else []
    return f"""# A tuned prompt for {backbone.name}
{caveats}
Made by cuecraft with `{manifest.method}`, seed {manifest.seed}. The backbone
stays as it is; this folder holds a prompt of {prompt.length} tokens.
{together}
- prompt ({prompt.kind}): `{prompt.text!r}`
- template: `{task.template!r}`
{answers}{examples}- backbone: {backbone.name} ({backbone.head}), hash `{backbone.sha256[:16]}`
{found}{"".join(f"{line}{chr(10)}" for line in classes)}
{"".join(f"{line}{chr(10)}" for line in measured)}| data | rows | hash |
| --- | --- | --- |
{chr(10).join(data)}

```bash
cuecraft predict THIS_FOLDER "a text to classify"
```

The prompt answers for the kind of text it was tuned on, {of_kind}. It inherits the
backbone's licence, its knowledge and its biases. It is not a safeguard against text written to mislead it.
"""
