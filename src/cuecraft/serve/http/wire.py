"""What goes over the wire, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cuecraft.data.readers import text_value
from cuecraft.errors import DataError
from cuecraft.guard import GuardMode, Screening, Verdict
from cuecraft.serve.limits import Limits
from cuecraft.serve.requests import Answer

# What a text may be is told by the schema and checked by `check_texts`, which says better what is wrong.
_SOMETHING = {"type": "string", "minLength": 1, "pattern": r"\S"}
_String = Annotated[str, WithJsonSchema(_SOMETHING)]
_OBJECT = {"type": "object", "minProperties": 1, "additionalProperties": _SOMETHING}
_Fields = Annotated[dict[str, str], WithJsonSchema(_OBJECT)]
Text = _String | _Fields
_IDS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}}
_SEVERAL = {"type": "array", "minItems": 1, "items": {"anyOf": [_SOMETHING, _OBJECT]}}


def _whole(value: Any) -> Any:
    """Return a number as JSON Schema knows whole ones: 2.0 is one, neither "2" nor true is."""
    if isinstance(value, bool | str):
        raise ValueError("a whole number is expected")
    return value


_Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
_Milliseconds = Annotated[int, Field(ge=50), BeforeValidator(_whole)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyRequest(_Document):
    """Texts, and the prompts that are to classify them."""

    inputs: Text | Annotated[list[Text], WithJsonSchema(_SEVERAL)] = Field(
        description="a text, or several; a text is a string, or its fields by name"
    )
    prompts: str | Annotated[list[str], WithJsonSchema(_IDS)] | None = Field(
        None, description="ids; may be left out where one prompt is served"
    )
    top_k: _Count | None = Field(None, description="probabilities of so many classes, the likeliest; all by default")
    timeout_ms: _Milliseconds | None = Field(None, description="after which the answer is of no use")
    guard: GuardMode | None = Field(
        None, description="`flag` or `block` texts that look like attacks; see docs/guard.md"
    )

    @property
    def given(self) -> Sequence[str | dict[str, str]]:
        """Each text as it came."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    @property
    def texts(self) -> list[dict[str, str]]:
        """The fields of each text."""
        return [{"text": text} if isinstance(text, str) else text for text in self.given]

    @property
    def ids(self) -> list[str] | None:
        """The prompts' ids; None where none is named."""
        return [self.prompts] if isinstance(self.prompts, str) else self.prompts


class ExplainRequest(_Document):
    """A text, and the prompt whose answer is to be explained."""

    input: Text = Field(description="a string, or its fields by name")
    prompt: str | None = Field(None, description="an id; may be left out where one prompt is served")


class AnswerDocument(_Document):
    """What one prompt answers to one text."""

    prompt: str
    version: str
    label: Any
    probabilities: dict[str, float]
    truncated: bool


class GuardDocument(_Document):
    """What the guard says of one text."""

    verdict: Verdict
    blocked: bool
    findings: list[dict[str, Any]]
    scores: dict[str, float]


class ResultDocument(_Document):
    """The answers to one text; none where the guard blocked it."""

    answers: list[AnswerDocument]
    guard: GuardDocument | None = None


class ClassifyResponse(_Document):
    """The answers to all texts, in their order."""

    model: str
    results: list[ResultDocument]


class WordDocument(_Document):
    """A word, or several neighbours, and how much less probable the label is without them."""

    word: str
    drop: float


class ExplainResponse(_Document):
    """What each word adds to the probability of the label."""

    prompt: str
    label: Any
    probability: float
    words: list[WordDocument]


class ErrorDocument(_Document):
    """What is wrong, and what to do."""

    error: str


def check_texts(texts: Sequence[Mapping[str, str]], limits: Limits) -> None:
    """Raise DataError where texts are too many, too long, empty or no Unicode."""
    if not texts:
        raise DataError("inputs is empty; give at least one text")
    if len(texts) > limits.inputs:
        raise DataError(f"{len(texts)} inputs, and a request may have {limits.inputs}; send several requests")
    for number, fields in enumerate(texts, start=1):
        for name, value in fields.items():
            text_value(f"input {number}", name, value)
        size = sum(map(len, fields.values()))
        if size > limits.characters:
            raise DataError(f"input {number} has {size} characters, and {limits.characters} may be sent; cut it")


def answer_document(answer: Answer, top_k: int | None) -> dict[str, Any]:
    """Return an answer as an `AnswerDocument` has it, the likeliest classes first where they are counted."""
    pairs = list(zip(map(str, answer.classes), answer.probabilities, strict=True))
    if top_k is not None:
        pairs = sorted(pairs, key=lambda pair: -pair[1])[:top_k]
    return {
        "prompt": answer.prompt,
        "version": answer.version,
        "label": answer.label,
        "probabilities": dict(pairs),
        "truncated": answer.is_cut,
    }


def result_document(
    answers: Sequence[Answer], top_k: int | None, screening: Screening | None, is_blocked: bool
) -> dict[str, Any]:
    """Return the answers to one text as a `ResultDocument` has them."""
    document: dict[str, Any] = {"answers": [answer_document(answer, top_k) for answer in answers]}
    if screening is not None:
        document["guard"] = {**screening.document(), "blocked": is_blocked}
    return document
