"""The documents that a comparison writes: one for each cell (a method on a seed), and one for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cuecraft.artifact.manifest import BackboneEntry, DataEntry

# 2: scores by name, and what plots need of answers of any kind; 3: keys of scores name their metric, where they were
# `accuracy` for all kinds of answers.
SCHEMA_VERSION = 3


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity, and a diverged run may have them: such a number is left out."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Measured(_Part):
    """A part with scores of one metric, whose name its document has in place of `score`: `accuracy`, `dev_spearman`."""

    scored: ClassVar[tuple[str, ...]] = ("score",)

    measure: str = Field("accuracy", description="name of the metric, which stands in the keys of its scores")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """Read the scores of a document, whose keys have the metric's name."""
        if not isinstance(given, Mapping):
            return given
        unknown = [key for key in given if key not in cls.model_fields]
        prefixes = [name.removesuffix("score") for name in cls.scored]
        keys = {key: own for key in unknown for own in prefixes if key.startswith(own)}
        measures = {key.removeprefix(own) for key, own in keys.items()}
        if len(measures) != 1:
            return given
        known = {key: value for key, value in given.items() if key not in keys}
        return known | {f"{own}score": given[key] for key, own in keys.items()} | {"measure": measures.pop()}

    @model_serializer(mode="wrap")
    def _named(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write scores under the metric's name."""
        found: dict[str, Any] = write(self)
        measure = found.pop("measure")
        return {name.replace("score", measure) if name in self.scored else name: own for name, own in found.items()}


class ScoreEntry(_Measured):
    """Mean loss (nats; null where it is no finite number) and mean score: of labels the accuracy."""

    loss: Number
    score: float


class MemoryEntry(_Part):
    """Peak memory in bytes while a method was fitted; null where it cannot be measured."""

    peak: int | None = Field(description="resident memory of the process (CPU) or the allocator's (GPU), at its peak")
    rise: int | None = Field(description="peak less what was in use before")


class SpeedEntry(_Part):
    """Answers on test texts read fresh."""

    examples_per_second: float = Field(description="many texts given at once")
    rows: int = Field(description="how many texts that were")
    latencies_ms: list[float] = Field(description="of single queries, one text each")


class RepeatEntry(_Part):
    """Whether the method's steps were the same, bit for bit, when it was run again."""

    same: bool
    steps: int = Field(description="how many steps of both runs were compared")


class Step(_Measured):
    """One step of a search or training."""

    scored: ClassVar[tuple[str, ...]] = ("train_score", "dev_score")

    phase: str
    step: int
    train_loss: Number = None
    train_score: Number = None
    dev_loss: Number = None
    dev_score: Number = None
    best: bool = False
    accepted: bool | None = Field(None, description="of a search: whether the swap tried was taken")
    prompt: str | None = Field(None, description="of a search: the prompt in words")

    @classmethod
    def of(cls, event: Mapping[str, Any], number: int, measure: str = "accuracy") -> Step:
        """Take what is known of a trace event; `number` stands in where it has no step.

        Args:
            event: the document of the event.
            number: of the step.
            measure: the name of the score in it.
        """
        named = {f"{part}_score": event.get(f"{part}_{measure}") for part in ("train", "dev")}
        found = {**event, **named, "measure": measure}
        known = {name: found[name] for name in cls.model_fields if found.get(name) is not None}
        return cls.model_validate({"phase": "", "step": number} | known)


class Neighbours(_Part):
    """The words nearest to one tuned vector, nearest first."""

    words: list[str]
    cosines: list[float]


class Band(_Part):
    """Answers whose probability lies in one tenth of 0 to 1."""

    expected: float = Field(description="mean probability")
    observed: float = Field(description="share of them that is right")
    count: int


class PrecisionRecall(_Part):
    """Precision and recall of all labels of sets together, at one threshold for all."""

    recall: list[float]
    precision: list[float]
    average_precision: float
    decided_recall: float = Field(description="of the answers, which have a threshold for each label")
    decided_precision: float


class ErrorCount(_Part):
    """How many numbers are answered with an error, answer less truth, between two ends."""

    low: float
    high: float
    count: int


class Figures(_Part):
    """What plots of a kind of answers need; null where they do not fit it."""

    reliability: list[Band] | None = None
    precision_recall: PrecisionRecall | None = None
    ranks: dict[str, int] | None = Field(None, description="rows by the rank of the right option")
    errors: list[ErrorCount] | None = None


class Cell(_Part):
    """One method on one seed."""

    schema_version: int = SCHEMA_VERSION
    key: str = Field(description="hash of everything that the cell depends on")
    name: str
    method: str
    options: dict[str, Any]
    seed: int
    tuned: bool = Field(description="false where nothing better than the untuned prompt was found")
    dev: ScoreEntry
    test: ScoreEntry
    macro_f1: float | None = Field(description="of labels")
    measures: dict[str, float] = Field({}, description="scores on the test rows by name, the primary one first")
    predictions: list[Any] = Field(description="answers to the test rows, in order; of labels the class numbers")
    primary: list[float] | None = Field(None, description="primary scores of the test rows; of labels left out")
    figures: Figures = Figures()
    seconds: float = Field(description="of search and training, texts already read")
    memory: MemoryEntry
    speed: SpeedEntry
    tuned_parameters: int
    stored_bytes: int
    repeat: RepeatEntry | None = Field(description="measured on one seed of each method")
    prompt: str = Field(description="in words, or a description")
    words: str | None = Field(description="the best prompt in words found on the way, where the winner is not in words")
    neighbours: list[Neighbours] | None = Field(description="of each vector of a soft prompt")
    steps: list[Step]


class Estimate(_Part):
    """A mean over seeds."""

    mean: float
    sd: float | None = Field(description="over seeds; null with one seed")
    low: float | None = Field(description="lower end of the 95% interval; null where rows do not add up to the score")
    high: float | None = Field(description="upper end of the 95% interval")


class Difference(_Part):
    """Primary score less another method's: paired bootstrap over seeds and rows."""

    mean: float
    low: float
    high: float
    p: float = Field(description="two-sided")


class Row(_Measured):
    """One method over all seeds; results are null where it was refused."""

    name: str
    method: str
    refused: str | None = Field(None, description="why the method does not go with the backbone")
    score: Estimate | None = Field(None, description="the primary one: of labels the accuracy")
    macro_f1: Estimate | None = Field(None, description="of labels")
    measures: dict[str, Estimate] = Field({}, description="of all scores by name, the primary one first")
    dev_loss: float | None = Field(None, description="mean over seeds; the best method is chosen by it")
    versus_untuned: Difference | None = Field(None, description="null in the reference's own row")
    versus_best: Difference | None = Field(None, description="null in the best method's own row")
    tuned_seeds: int = Field(0, description="seeds on which something better than the untuned prompt was found")
    train_seconds: float | None = Field(None, description="mean over seeds")
    examples_per_second: float | None = Field(None, description="median over seeds")
    latency_p50_ms: float | None = Field(None, description="of all single queries of all seeds")
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = Field(None, description="greatest of the seeds")
    memory_rise_bytes: int | None = Field(None, description="greatest of the seeds")
    tuned_parameters: int | None = Field(None, description="greatest of the seeds")
    stored_bytes: int | None = Field(None, description="greatest of the seeds")
    reproducible: RepeatEntry | None = None
    confusion: list[list[int]] | None = Field(None, description="[C, C] rows by true and by predicted class, all seeds")


class ComparedTask(_Part):
    """What was asked of the backbone."""

    name: str
    template: str
    answers: str = Field("labels", description="the kind of answers")
    primary: str = Field("accuracy", description="the name of the primary score")
    labels: list[str] = Field(description="names of the options that all texts share")
    label_words: list[list[str]]
    max_tokens: int | None
    reserve: int


class SplitEntry(_Part):
    """A seed's own examples."""

    seed: int
    train: DataEntry
    dev: DataEntry


class MachineEntry(_Part):
    """Where the latest part of the comparison ran."""

    platform: str
    cpu: str
    device: str
    threads: int
    versions: dict[str, str]
    date: str


class Comparison(_Part):
    """What `compare.json` holds."""

    schema_version: int = SCHEMA_VERSION
    task: ComparedTask
    backbone: BackboneEntry
    seeds: list[SplitEntry]
    test: DataEntry
    truth: list[Any] = Field(description="right answers to the test rows, in order; of labels the class numbers")
    untuned: str = Field(description="the row that stands for the untuned prompt")
    best: str = Field(description="the row of least mean dev loss; the test rows choose nothing")
    rows: list[Row]
    cells: list[Cell]
    kept_cells: int = Field(description="cells that an earlier run had finished")
    skipped_rows: dict[str, Any] | None = Field(None, description="rows that were left out, each with its reason")
    machine: MachineEntry
