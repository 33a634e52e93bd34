"""What runs are asked for, in sections: names, bounds, defaults and meanings of options, each in this one place.

Recipes and `runs.spec.RunSpec` are made of them; the command line has an option for each field (`cli/from_spec.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cuecraft.core.errors import MethodError, TemplateError
from cuecraft.task.chat import TURNS, ChatChoice, chat_of, given_turns
from cuecraft.task.template import Template

Seed = Annotated[int, Field(ge=0, lt=2**63)]
HeadName = Literal["causal", "masked", "sequence"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16", "nf4"]


_DEVICE: Any = Field("auto", description="a torch device; auto takes a GPU if there is one")
_DTYPE: Any = Field(
    "auto", description="of the weights: auto (by the device), float32, bfloat16, float16, or nf4 (4 bits, GPU)"
)
_OFFLINE: Any = Field(False, description="never ask the Hub for a model")
_TEST_SIZE: Any = Field(
    None, ge=1, description="test rows to draw, from test or from what shots leaves of train; by default all"
)
_TEXT_COLUMNS: Any = Field(["text"], min_length=1, description="columns of text")
_LABEL_COLUMN: Any = Field(
    None, description="column of labels; by default the usual one of their kind, such as label, labels or answer"
)
_OPTIONS_COLUMN: Any = Field("choices", description="column of options, where each row brings its own")
_SEPARATOR: Any = Field(
    None, min_length=1, description="between labels of a set, or options, that a cell of CSV holds, such as ';'"
)
ANSWERS_FIELD: Any = Field(
    None,
    description="what counts as an answer: a kind, such as labels, or a kind with its options; by default what columns "
    "and values of train show",
)
_TEMPLATE: Any = Field(None, description="such as '{text}{prompt: It was}{mask}'; by default a general one")
_MAX_TOKENS: Any = Field(None, ge=1, description="tokens of one input at most")


class Section(BaseModel):
    """Part of what a run is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The frozen model."""

    name: str = Field(
        "demo:smollm2-135m", min_length=1, description="a demo: model, local folder, GGUF file or Hub name"
    )
    head: HeadName | None = Field(None, description="causal, masked or sequence; by default what the checkpoint has")
    device: str = _DEVICE
    dtype: DtypeName = _DTYPE
    local_files_only: bool = _OFFLINE

    @property
    def where(self) -> dict[str, Any]:
        """Arguments by which it is loaded, but for name and head."""
        return self.model_dump(exclude={"name", "head"})


class BackboneSection(Section):
    """Where the backbone of something that was tuned is now, and how it is loaded."""

    model: str | None = Field(None, description="where the backbone is now, if not where it was")
    device: str = _DEVICE
    dtype: DtypeName = _DTYPE
    local_files_only: bool = _OFFLINE


class DataSection(Section):
    """The examples; paths are taken from the folder that the command runs in."""

    train: str = Field(
        description="CSV, TSV, JSONL or Parquet file, demo: data, or a data set name; without labels also .txt"
    )
    dev: str | None = Field(None, description="examples to choose and stop by")
    test: str | None = Field(None, description="held-out examples, for reporting only")
    test_size: int | None = _TEST_SIZE
    shots: int | None = Field(None, ge=1, description="examples of each class drawn from train, and as many for dev")
    first: int | None = Field(
        None, ge=1, description="learn from the first rows of train alone, test on the later ones"
    )
    text_columns: list[str] = _TEXT_COLUMNS
    label_column: str | None = _LABEL_COLUMN
    options_column: str = _OPTIONS_COLUMN
    separator: str | None = _SEPARATOR


def _check_answers(answers: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(answers, str) or (answers is not None and "kind" in answers):
        from cuecraft.task.answers import asked_answers  # which needs NumPy

        try:
            asked_answers(answers)
        except MethodError as error:
            raise ValueError(str(error)) from None
    return answers


#: A kind of answers; its options, with the key `kind`, or without it for the kind that the data shows.
AnswersText = Annotated[str | dict[str, Any] | None, AfterValidator(_check_answers)]


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
    system: str | None = Field(None, description="the system's turn of a chat; implies chat")
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


class WritingSection(ChatSection):
    """What the texts are made into, with label words that are given."""

    template: TemplateText = _TEMPLATE
    label_words: dict[str, list[str]] | None = Field(None, description="class: [words]; by default the classes' names")
    max_tokens: int | None = _MAX_TOKENS


class AnsweringSection(WritingSection):
    """What the texts are made into, and what counts as an answer."""

    answers: AnswersText = ANSWERS_FIELD


class TaskSection(ChatSection):
    """What the texts are made into."""

    answers: AnswersText = ANSWERS_FIELD
    template: TemplateText = _TEMPLATE
    label_words: dict[str, list[str]] | Literal["auto"] | None = Field(
        None, description="class: [words]; by default the classes' names; auto to search them"
    )
    classes: list[str] | None = Field(None, description="the classes, where no row has a label")
    max_tokens: int | None = _MAX_TOKENS


class FamilyData(Section):
    """What all tasks have in common."""

    test_size: int | None = Field(None, ge=1, description="test rows to draw from each; by default all")
    text_columns: list[str] = _TEXT_COLUMNS
    label_column: str | None = _LABEL_COLUMN
    options_column: str = _OPTIONS_COLUMN
    separator: str | None = _SEPARATOR


class LimitSection(Section):
    """Seeds and time of a run."""

    seed: Seed = Field(0, description="of everything random")
    seeds: list[Seed] | None = Field(None, min_length=2, description="one run for each, in place of seed")
    time_limit: float | None = Field(
        None,
        ge=0,
        description="seconds of each session for reading, search, training and testing; a run that is cut by it may "
        "not repeat itself",
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _are_several(cls, seeds: Any) -> Any:
        if isinstance(seeds, list | tuple) and len(seeds) < 2:
            raise ValueError("needs two seeds at least, such as 0,1,2; for one, give seed")
        return seeds

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int] | None) -> list[int] | None:
        return seeds and differing(seeds)


def differing(seeds: list[int]) -> list[int]:
    """Return seeds as they are.

    Raises:
        ValueError: one is named twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is named twice; name each once")
    return seeds
