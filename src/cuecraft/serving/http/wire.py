"""What goes over the wire, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cuecraft.core.errors import DataError
from cuecraft.data.readers import text_value
from cuecraft.serving.guard import GuardMode, Screening, Verdict
from cuecraft.serving.requests import Answer, RequestLimits
from cuecraft.task import Task
from cuecraft.task.answers import AnswerColumns

# The schema declares what a text may be; `checked_texts` checks it, with clearer errors.
_SOMETHING = {"type": "string", "minLength": 1, "pattern": r"\S"}
_String = Annotated[str, WithJsonSchema(_SOMETHING)]
_CHOICES = AnswerColumns().options  # the name under which a text brings options
_OBJECT = {"type": "object", "minProperties": 1}  # what no prompt reads may be anything
_Fields = Annotated[dict[str, Any], WithJsonSchema(_OBJECT)]
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
        description="a text, or several; a text is a string, or its fields by name, with a list of options under "
        "`choices` where a prompt chooses among those of the text"
    )
    prompts: str | Annotated[list[str], WithJsonSchema(_IDS)] | None = Field(
        None, description="ids; may be left out where one prompt is served"
    )
    top_k: _Count | None = Field(None, description="probabilities of so many options, the likeliest; all by default")
    timeout_ms: _Milliseconds | None = Field(None, description="after which the answer is of no use")
    guard: GuardMode | None = Field(
        None, description="`flag` or `block` texts that look like attacks; see docs/guard.md"
    )

    @property
    def given(self) -> Sequence[str | dict[str, Any]]:
        """Each text as it came."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    @property
    def ids(self) -> list[str] | None:
        """The prompts' ids; None where none is named."""
        return [self.prompts] if isinstance(self.prompts, str) else self.prompts


class ExplainRequest(_Document):
    """A text, and the prompt whose answer is to be explained."""

    input: Text = Field(description="a string, or its fields by name, with its options as for `ClassifyRequest`")
    prompt: str | None = Field(None, description="an id; may be left out where one prompt is served")


class AnswerDocument(_Document):
    """What one prompt answers to one text, by the kind of its answers (`answers` of `/v1/prompts`)."""

    prompt: str
    version: str
    value: Any = Field(
        description="labels: the class; open-set: the class, or the label of texts of no class; choices: the option's "
        "place from 0, or its text, as in the training data; "
        "multilabel: a list of classes; ordinal: a number; cloze: a word or words; tokens: a list of spans, each with "
        "`label`, `start`, `end` and `text`; null where none is answered"
    )
    confidence: float = Field(description="the probability of the value, 0 to 1")
    options: dict[str, float] = Field(description="the probability of each option, by its name or text")
    interval: tuple[float, float] | None = Field(None, description="of a number, between which the truth likely is")
    label: Any = Field(None, description="of labels: the value")
    probabilities: dict[str, float] | None = Field(None, description="of labels: the options")
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
    """A word, or several neighbours, and how much less probable the option is without them."""

    word: str
    drop: float


class ExplainResponse(_Document):
    """What each word adds to the probability of the likeliest option."""

    prompt: str
    label: Any = Field(description="the value that is answered")
    option: str = Field(description="the likeliest option")
    probability: float = Field(description="of that option")
    words: list[WordDocument]


class ErrorDocument(_Document):
    """What is wrong, and what to do."""

    error: str


def checked_texts(
    given: Sequence[str | Mapping[str, Any]], tasks: Sequence[Task], limits: RequestLimits
) -> list[dict[str, Any]]:
    """Return the fields of each text that some task reads, and its options; what none reads is not looked at.

    A text that came as a string is the field of every task that reads one, whatever that is called.

    Args:
        given: each text as it came.
        tasks: of the prompts that are asked.
        limits: what one request may hold.

    Raises:
        DataError: texts are too many, or one is too long, empty, no string or no Unicode; or its options are missing or
            cannot be chosen among.
        TemplateError: a text lacks a field that a task reads.
    """
    if not given:
        raise DataError("inputs is empty; give at least one text")
    if len(given) > limits.inputs:
        raise DataError(f"{len(given)} inputs, and a request may have {limits.inputs}; send several requests")
    read = dict.fromkeys(name for task in tasks for name in task.template.field_names)
    texts = []
    for number, text in enumerate(given, start=1):
        where = f"input {number}"
        for task in [] if isinstance(text, str) else tasks:
            task.check_fields(text, where)
        own = {"text": text} if isinstance(text, str) else {name: text[name] for name in read}
        fields: dict[str, Any] = {name: text_value(where, name, value) for name, value in own.items()}
        options = _options(where, {} if isinstance(text, str) else text, tasks)
        size = sum(map(len, (*fields.values(), *options)))
        if size > limits.characters:
            raise DataError(f"{where} has {size} characters, and {limits.characters} may be sent; cut it")
        texts.append({**fields, _CHOICES: options} if options else fields)
    return texts


def _options(where: str, text: Mapping[str, Any], tasks: Sequence[Task]) -> tuple[str, ...]:
    """Return the options that a text brings, where a task asks for them."""
    asking = [task.answers for task in tasks if task.answers.asks_options]
    if not asking:
        return ()
    given = text.get(_CHOICES)
    if isinstance(given, str | dict | bool | int | float):  # a string is what a file may have, with a separator
        what = {str: "a string", dict: "an object", bool: "true or false"}.get(type(given), "a number")
        raise DataError(f"{where}: {_CHOICES!r} is {what}, and no list of options; send a list of texts")
    if _CHOICES not in text:
        raise DataError(f"{where} brings no options; send an object with its fields and {_CHOICES!r}, a list of texts")
    return next(filter(None, (answers.read_options(where, text, AnswerColumns()) for answers in asking)), ())


def check_names_once(body: bytes) -> None:
    """Raise DataError where a body, or a text in it, has a name twice: of two values, none is the one that is meant.

    Args:
        body: JSON that was read before.
    """
    # Numbers stay as they are written: they may have more digits than Python reads.
    document = json.loads(body, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
    _check_once("the request's body", document)
    for name, value in document:
        if name in ("input", "inputs"):
            texts = [value] if isinstance(value, _Pairs) else value if isinstance(value, list) else ()
            for number, text in enumerate(texts, start=1):
                if isinstance(text, _Pairs):
                    _check_once(f"input {number}", text)


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it is written."""


def _check_once(where: str, pairs: _Pairs) -> None:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"{where} has {twice[0]!r} more than once; send it once")


def answer_document(answer: Answer, top_k: int | None) -> dict[str, Any]:
    """Return an answer as an `AnswerDocument` has it, the likeliest options first where they are counted."""
    found = answer.decision.document(top_k)
    labels = {"label": found["value"], "probabilities": found["options"]} if answer.has_labels else {}
    return {"prompt": answer.prompt, "version": answer.version, **labels, **found, "truncated": answer.is_cut}


def result_document(
    answers: Sequence[Answer], top_k: int | None, screening: Screening | None, is_blocked: bool
) -> dict[str, Any]:
    """Return the answers to one text as a `ResultDocument` has them."""
    document: dict[str, Any] = {"answers": [answer_document(answer, top_k) for answer in answers]}
    if screening is not None:
        document["guard"] = {**screening.document(), "blocked": is_blocked}
    return document
