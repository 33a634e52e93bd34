"""What a run is asked for: the keys of a recipe, and the requests of the commands.

`cuecraft recipe schema` prints the keys as JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    create_model,
    field_validator,
    model_validator,
)

from cuecraft.api.family import TASK_NAME
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import TemplateError
from cuecraft.core.options import Options
from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.methods import METHODS
from cuecraft.methods.problem import Method
from cuecraft.methods.search.label_free import LabelFreeSearch
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.study.compare.config import MethodEntry
from cuecraft.task import Template
from cuecraft.task.chat import TURNS, ChatChoice, chat_of, given_turns

TOLERANCE = 0.005
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
Tracker = Literal["tensorboard", "mlflow"]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """Part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The frozen model."""

    name: str = Field("demo:smollm2-135m", min_length=1, description="demo: model, local folder, GGUF file or Hub name")
    head: Literal["causal", "masked", "sequence"] | None = Field(None, description="by default what the checkpoint has")
    device: str = Field("auto", description="a torch device; auto takes a GPU if there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = Field(
        "auto", description="auto (by the device), float32, bfloat16, float16, or nf4 (4 bits, GPU)"
    )
    local_files_only: bool = Field(False, description="never ask the Hub for a model")


class DataSection(Section):
    """The examples; paths are taken from the folder that the command runs in."""

    train: str = Field(description="CSV, TSV, JSONL or Parquet file, demo: data, or a data set name")
    dev: str | None = Field(None, description="examples to choose and stop by")
    test: str | None = Field(None, description="held-out examples, for reporting only")
    test_size: int | None = Field(None, ge=1, description="test rows to draw; by default all")
    shots: int | None = Field(None, ge=1, description="examples of each class drawn from train, and as many for dev")
    first: int | None = Field(
        None, ge=1, description="learn from the first rows of train alone, test on the later ones"
    )
    text_columns: list[str] = Field(["text"], min_length=1, description="columns of text")
    label_column: str = Field("label", description="column of class names")


def _check_template(template: str | None) -> str | None:
    if template is not None:
        try:
            Template(template)
        except TemplateError as error:
            raise ValueError(str(error)) from None
    return template


TemplateText = Annotated[str | None, AfterValidator(_check_template)]


class ChatSection(Section):
    """What a chat says."""

    chat: bool | None = Field(None, description="whether the tokenizer's chat template writes the texts")
    system: str | None = Field(None, description="the system's turn of a chat")
    user: str | None = Field(None, description="the user's turn, such as '{text}'; implies chat")
    assistant: str | None = Field(None, description="the beginning of the assistant's, such as '{prompt:It is}{mask}'")

    @model_validator(mode="after")
    def _turns_go_together(self) -> Self:
        try:
            chat_of(self.choice, getattr(self, "template", None), "{text}", "")
        except TemplateError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def choice(self) -> ChatChoice | None:
        """What is asked of the tokenizer's chat template."""
        return given_turns(self.chat, {name: getattr(self, name) for name in TURNS})


class TaskSection(ChatSection):
    """What the texts are made into."""

    template: TemplateText = Field(None, description="such as '{text}{prompt: It was}{mask}'; by default a general one")
    label_words: dict[str, list[str]] | Literal["auto"] | None = Field(
        None, description="class: [words]; by default the classes' names; auto to search them"
    )
    classes: list[str] | None = Field(None, description="the classes, where no row has a label")
    max_tokens: int | None = Field(None, ge=1, description="tokens of one input at most")


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


class _Common(Section):
    name: str = Field(description="of the run's folder")
    description: str = Field(description="what it is, in a sentence")
    seed: Seed = Field(0, description="of everything random")
    env: dict[str, str | None] = Field(
        default_factory=dict,
        description="environment variables that may be written as ${NAME} below, each with what it is where it is not "
        "set; null where it has to be",
    )
    threads: int | None = Field(None, ge=1, description="of torch; by default as many as there are cores")
    model: ModelSection = Field(default_factory=ModelSection, description="the frozen model")
    trackers: list[Tracker] = Field(default_factory=list, description="also write for these: tensorboard, mlflow")
    expect: Expectation | None = Field(None, description="what the run gave when the recipe was written")

    @field_validator("seeds", check_fields=False)
    @classmethod
    def _seeds_differ(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice; name each once")
        return seeds

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("cannot name a folder; use up to 60 letters, digits and ._-")
        return name


class TuneRecipe(_Common):
    """One prompt, or one for each of several seeds."""

    job: Literal["tune"] = Field("tune", description="tune, multitask or compare")
    data: DataSection = Field(description="the examples")
    task: TaskSection = Field(default_factory=TaskSection, description="template and label words")
    tune: TuneSection = Field(description="the method, by its name, and its options")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="how often the state is kept")
    seeds: list[Seed] | None = Field(None, min_length=2, description="one run for each, in place of seed")
    time_limit: float | None = Field(
        None, gt=0, description="seconds of each session; a run that is cut by it may not repeat itself"
    )


class FamilyTask(Section):
    """One task of several."""

    train: str = Field(description="its examples")
    dev: str | None = Field(None, description="to choose and stop by")
    test: str | None = Field(None, description="held-out examples, for reporting only")


class FamilyData(Section):
    """What all tasks have in common."""

    test_size: int | None = Field(None, ge=1, description="test rows to draw from each; by default all")
    text_columns: list[str] = Field(["text"], min_length=1, description="columns of text")
    label_column: str = Field("label", description="column of class names")


class MultitaskRecipe(_Common):
    """Several tasks that share one tensor."""

    job: Literal["multitask"] = Field(description="tune, multitask or compare")
    tasks: dict[str, FamilyTask] = Field(min_length=2, description="the tasks by name")
    data: FamilyData = Field(default_factory=FamilyData, description="what all tasks have in common")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="how often the state is kept")
    multitask: MultitaskTuning = Field(default_factory=MultitaskTuning, description="options of the training")

    @field_validator("tasks")
    @classmethod
    def _tasks_name_folders(cls, tasks: dict[str, FamilyTask]) -> dict[str, FamilyTask]:
        wrong = next((name for name in tasks if not TASK_NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} cannot name a folder; use letters, digits, dot, dash and underscore")
        return tasks


class CompareData(Section):
    """The examples of a comparison."""

    task: str = Field(
        description="a folder with seed-S/train.jsonl, seed-S/dev.jsonl and test.jsonl; or, with shots, data"
    )
    shots: int | None = Field(None, ge=1, description="examples of each class drawn to train on, and as many for dev")
    test_size: int | None = Field(None, ge=1, description="test rows to draw, the same for all; by default all")
    text_columns: list[str] = Field(["text"], min_length=1, description="columns of text")
    label_column: str = Field("label", description="column of class names")


class CompareTask(ChatSection):
    """What the texts are made into."""

    template: TemplateText = Field(None, description="by default a general one")
    label_words: dict[str, list[str]] | None = Field(None, description="class: [words]; by default the classes' names")
    max_tokens: int | None = Field(None, ge=1, description="tokens of one input at most")


class CompareRecipe(_Common):
    """Methods side by side over seeds."""

    job: Literal["compare"] = Field(description="tune, multitask or compare")
    data: CompareData = Field(description="the examples")
    task: CompareTask = Field(default_factory=CompareTask, description="template and label words")
    seeds: list[Seed] = Field([13, 21, 42], min_length=1, description="each method runs once with each")
    methods: list[str | MethodEntry] = Field(
        ["all"], min_length=1, description="[all], or names and {name, method, options}"
    )


Recipe = TuneRecipe | MultitaskRecipe | CompareRecipe
JOBS: Mapping[str, type[_Common]] = {"tune": TuneRecipe, "multitask": MultitaskRecipe, "compare": CompareRecipe}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    kind: TypeAdapter[Any] = TypeAdapter(Recipe)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cuecraft recipe"} | kind.json_schema()


@dataclass(frozen=True)
class TuneRequest:
    """What `cuecraft tune` was asked for; see its help for each."""

    train: str
    dev: str | None
    test: str | None
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    method: str
    method_options: Mapping[str, Any]
    vocab_from: Path | None
    template: str | None
    label_words: Mapping[str, Sequence[str]] | Literal["auto"] | None
    shots: int | None
    first: int | None
    head: str | None
    max_tokens: int | None
    seed: int
    time_limit: float | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Keeping | None
    out: Path
    seeds: tuple[int, ...] | None
    unlabeled: bool
    classes: tuple[str, ...] | None
    prior: tuple[str, ...]
    stop: Callable[[], bool] = lambda: False  # whether to stop, of what has no checkpoints
    reading: Reading = AS_USUAL
    chat: ChatChoice | None = None


@dataclass(frozen=True)
class WordsRequest:
    """What `cuecraft words` was asked for; see its help for each."""

    train: str
    dev: str | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    options: Mapping[str, Any]
    template: str | None
    label_words: Mapping[str, Sequence[str]] | None
    shots: int | None
    head: str | None
    seed: int
    where: Mapping[str, Any]
    reading: Reading = AS_USUAL
    chat: ChatChoice | None = None


@dataclass(frozen=True)
class MultitaskRequest:
    """What `cuecraft multitask` was asked for; see its help for each."""

    tasks: Mapping[str, str]
    dev: Mapping[str, str]
    test: Mapping[str, str]
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    add_to: Path | None
    model: str | None
    options: Mapping[str, Any]
    head: str | None
    seed: int | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Keeping | None
    out: Path
