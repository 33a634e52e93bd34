"""What a run is asked for, on the command line, in a recipe or in Python: `RunSpec`. A recipe is one with a name.

`cuecraft recipe schema` prints the keys of recipes as JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, create_model, field_validator

from cuecraft.api.family import TASK_NAME
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import MethodError, named
from cuecraft.core.options import Options, make_options, option_places
from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.problem import Method
from cuecraft.methods.search.label_free import LabelFreeSearch
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.study.compare.config import MethodEntry
from cuecraft.task.sections import (
    ANSWERS_FIELD,
    AnsweringSection,
    AnswersText,
    DataSection,
    FamilyData,
    LimitSection,
    ModelSection,
    Section,
    Seed,
    TaskSection,
    WritingSection,
    differing,
)

TOLERANCE = 0.005
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
Tracker = Literal["tensorboard", "mlflow"]


class CheckpointSection(Section):
    """How often the state of what is not finished is kept: when both have passed, and when asked to stop."""

    steps: int = Field(1, ge=1, description="training batches or search steps between two states")
    seconds: float = Field(5.0, ge=0, description="between two states")


class Expectation(Section):
    """What the run gave when the recipe was written."""

    metrics: dict[str, float] = Field(default_factory=dict, description="such as test_accuracy: 0.86")
    tolerance: float = Field(TOLERANCE, ge=0, description="of a metric on another day or machine, 0 to 1")
    seconds: float | None = Field(None, gt=0, description="of the whole run, on the machine named in the description")
    memory_mib: float | None = Field(None, gt=0, description="resident memory of the process at its highest")


_METHODS: dict[str, type[Method]] = {**METHODS, LabelFreeSearch.name: LabelFreeSearch}
#: One kind for each method, made of its options: so every option is checked, documented and in the JSON Schema.
KINDS: dict[str, type[Options]] = {
    name: create_model(
        f"{kind.__name__}Section",
        __base__=kind,
        method=(Literal[name], Field(description="what finds the prompt")),  # type: ignore[arg-type]
    )
    for name, kind in _METHODS.items()
}
if TYPE_CHECKING:
    TuneSection = Options
else:
    TuneSection = Annotated[Union[tuple(KINDS.values())], Field(discriminator="method")]  # noqa: UP007


def method_section(method: str, options: Mapping[str, Any]) -> Options:
    """Return the section of a method and its options, by their dotted names.

    Raises:
        MethodError: an unknown method or option, or a value out of range.
    """
    if method not in _METHODS:
        make_method(method)  # which says so
    make_options(_METHODS[method], options)  # errors list its own options
    return make_options(KINDS[method], {**options, "method": method})


def with_corpus(method: str, options: Mapping[str, Any], corpus: Path | None) -> dict[str, Any]:
    """Return a method's options with a corpus of words where its search takes one.

    Raises:
        MethodError: it searches no words, or a corpus is named twice.
    """
    if corpus is None or method not in METHODS:
        return dict(options)
    places = {name: option_places(kind, "vocabulary.corpus") for name, kind in METHODS.items()}
    if not places[method]:
        able = ", ".join(name for name, found in places.items() if found)
        raise MethodError(f"{named('vocab_from')} goes with methods that search for words ({able}), not with {method}")
    for place in places[method]:
        if place in options:
            raise MethodError(f"{named('vocab_from')} and {named('option')} {place} both name a corpus; give one")
    return {**options, **dict.fromkeys(places[method], str(corpus))}


class RunSpec(LimitSection):
    """A run of `tune`: one prompt, or one for each of several seeds."""

    model: ModelSection = Field(default_factory=ModelSection, description="the frozen model")
    data: DataSection = Field(description="the examples")
    task: TaskSection = Field(default_factory=TaskSection, description="template and label words")
    tune: TuneSection = Field(description="the method, by its name, and its options")

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.tune.method)  # type: ignore[attr-defined]

    @property
    def options(self) -> dict[str, Any]:
        """The method's options that were given."""
        return self.tune.model_dump(mode="json", exclude_unset=True, exclude={"method"})

    @property
    def is_label_free(self) -> bool:
        """Whether the prompt is chosen without labels."""
        return self.method == LabelFreeSearch.name


class WordsSpec(Section):
    """A search of label words."""

    model: ModelSection
    data: DataSection
    task: WritingSection
    search: LabelWordSearch
    seed: Seed = 0


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes, and how it reads.

    Args:
        out: folder of what it makes.
        checkpoints: where states are kept; None to keep none.
        reading: the delimiter, and what becomes of bad rows.
        stop: whether to stop, of what has no checkpoints.
    """

    out: Path
    checkpoints: Keeping | None = None
    reading: Reading = AS_USUAL
    stop: Callable[[], bool] = lambda: False


class _Record(Section):
    """What a recipe says in addition to what its job is asked for."""

    name: str = Field(description="of the run's folder")
    description: str = Field(description="what it is, in a sentence")
    env: dict[str, str | None] = Field(
        default_factory=dict,
        description="environment variables that may be written as ${NAME} below, each with what it is where it is not "
        "set; null where it has to be",
    )
    threads: int | None = Field(None, ge=1, description="of torch; by default as many as there are cores")
    trackers: list[Tracker] = Field(default_factory=list, description="also write for these: tensorboard, mlflow")
    expect: Expectation | None = Field(None, description="what the run gave when the recipe was written")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("cannot name a folder; use up to 60 letters, digits and ._-")
        return name


class TuneRecipe(RunSpec, _Record):
    """One prompt, or one for each of several seeds."""

    job: Literal["tune"] = Field("tune", description="tune, multitask or compare")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="how often the state is kept")


class FamilyTask(Section):
    """One task of several."""

    train: str = Field(description="its examples")
    dev: str | None = Field(None, description="to choose and stop by")
    test: str | None = Field(None, description="held-out examples, for reporting only")
    answers: AnswersText = ANSWERS_FIELD
    text_columns: list[str] | None = Field(None, min_length=1, description="columns of text, if not those of data")


class MultitaskSpec(Section):
    """Several tasks that share one tensor."""

    seed: Seed = Field(0, description="of everything random")
    model: ModelSection = Field(default_factory=ModelSection, description="the frozen model")
    tasks: dict[str, FamilyTask] = Field(min_length=1, description="the tasks by name")
    data: FamilyData = Field(default_factory=FamilyData, description="what all tasks have in common")
    multitask: MultitaskTuning = Field(default_factory=MultitaskTuning, description="options of the training")


class MultitaskRecipe(MultitaskSpec, _Record):
    """Several tasks that share one tensor."""

    job: Literal["multitask"] = Field(description="tune, multitask or compare")
    tasks: dict[str, FamilyTask] = Field(min_length=2, description="the tasks by name")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="how often the state is kept")

    @field_validator("tasks")
    @classmethod
    def _tasks_name_folders(cls, tasks: dict[str, FamilyTask]) -> dict[str, FamilyTask]:
        wrong = next((name for name in tasks if not TASK_NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} cannot name a folder; use letters, digits, dot, dash and underscore")
        return tasks


class CompareData(FamilyData):
    """The examples of a comparison."""

    task: str = Field(
        description="a folder with seed-S/train.jsonl, seed-S/dev.jsonl and test.jsonl; or, with shots, data"
    )
    shots: int | None = Field(None, ge=1, description="examples of each class drawn to train on, and as many for dev")
    test_size: int | None = Field(None, ge=1, description="test rows to draw, the same for all; by default all")


class CompareRecipe(_Record):
    """Methods side by side over seeds."""

    job: Literal["compare"] = Field(description="tune, multitask or compare")
    seed: Seed = Field(0, description="of everything random")
    model: ModelSection = Field(default_factory=ModelSection, description="the frozen model")
    data: CompareData = Field(description="the examples")
    task: AnsweringSection = Field(default_factory=AnsweringSection, description="template, answers and label words")
    seeds: list[Seed] = Field([13, 21, 42], min_length=1, description="each method runs once with each")
    methods: list[str | MethodEntry] = Field(
        ["all"], min_length=1, description="[all], or names and {name, method, options}"
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        return differing(seeds)


Recipe = TuneRecipe | MultitaskRecipe | CompareRecipe
JOBS: Mapping[str, type[_Record]] = {"tune": TuneRecipe, "multitask": MultitaskRecipe, "compare": CompareRecipe}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    kind: TypeAdapter[Any] = TypeAdapter(Recipe)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cuecraft recipe"} | kind.json_schema()
