"""A task: template, answer space, the examples made of records; and a task as a manifest has it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cuecraft.core.errors import DataError, MethodError, TemplateError
from cuecraft.data import Record
from cuecraft.data.texts import Texts, as_records
from cuecraft.task.answers import AnswerSpace, Gold, Verbalizer, answer_space, answers_document
from cuecraft.task.example import Example
from cuecraft.task.template import Conversation, Template

Norm = Literal["siblings"]


@dataclass(frozen=True)
class Shot:
    """An example with its answer, which stands in front of every text.

    Args:
        fields: pairs of a field's name and its text.
        gold: its right answer, as the task's answer space has it.
        options: that it brings; none where all texts share theirs.
    """

    fields: tuple[tuple[str, str], ...]
    gold: Gold
    options: tuple[str, ...] = ()

    @property
    def example(self) -> Example:
        """The example without its answer."""
        return Example(dict(self.fields), options=self.options)


@dataclass(frozen=True)
class Task:
    """What is asked of the backbone.

    Args:
        template: where the fields, the tuned tokens and the answer stand.
        answers: what counts as an answer, as the classes and their label words.
        max_tokens: tokens of one input at most, cue included; None for as many as the backbone has positions.
        reserve: positions kept free for tuned tokens when texts are cut to fit.
        shots: labelled examples in front of every text, first to last; each is written in the template with the
            template's own words in the prompt slot and the first label word of its class.
        nearest: of the shots, how many stand in front of a text, those nearest to it by the backbone's features, the
            nearest last; None for all of them in front of every text.
        norm: `siblings` to normalise each further token of a label word over the tokens with which words go on there,
            so that only places where words part are read; then a word with which another one begins is followed by what
            ends it. None for exact probabilities, over the whole vocabulary after every beginning of a word.

    Raises:
        DataError: `max_tokens`, `reserve` or `nearest` is not positive, or a shot is of no class.
        TemplateError: a shot lacks a field that the template names, or the system's turn of a chat has a slot, which
            several rounds of one conversation cannot fill.
    """

    template: Template
    answers: AnswerSpace
    max_tokens: int | None = None
    reserve: int = 32
    shots: tuple[Shot, ...] = ()
    nearest: int | None = None
    norm: Norm | None = None

    def __post_init__(self) -> None:
        if self.reserve < 1:
            raise DataError(f"reserve is {self.reserve}; keep at least one position for the prompt")
        if self.nearest is not None and not 1 <= self.nearest <= len(self.shots):
            raise DataError(f"nearest is {self.nearest}, of {len(self.shots)} examples; give 1 to {len(self.shots)}")
        if self.shots and self.template.chat is not None and (slots := self.template.chat.system_slots):
            raise TemplateError(
                f"the system's turn has {{{slots[0]}}}, and with examples in the prompt the system speaks once for all "
                "of them; put it into the user's turn"
            )
        for number, shot in enumerate(self.shots, start=1):
            try:
                self.answers.label(shot.gold)
            except DataError as error:
                raise DataError(f"example {number} in the prompt is of {error}") from None
            self.check_fields(dict(shot.fields), f"example {number} in the prompt")
        if self.max_tokens is not None and self.max_tokens <= self.reserve:
            raise DataError(
                f"max_tokens is {self.max_tokens} and {self.reserve} are kept for the prompt; allow more tokens"
            )

    @property
    def has_labels(self) -> bool:
        """Whether the answers are classes with label words."""
        return isinstance(self.answers, Verbalizer)

    @property
    def undecided(self) -> Task:
        """The same task without what decisions take from held-out answers; texts are written and read alike."""
        answers = self.answers.undecided
        return self if answers is self.answers else replace(self, answers=answers)

    @property
    def verbalizer(self) -> Verbalizer:
        """The answers as classes with label words.

        Raises:
            MethodError: they are of another kind.
        """
        if not isinstance(self.answers, Verbalizer):
            raise MethodError(
                f"this needs classes with label words; the task's answers are of kind {self.answers.kind}"
            )
        return self.answers

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Turn records into examples.

        Raises:
            TemplateError: the template names a field that a record does not have.
            DataError: a label is no answer of the task.
        """
        return [self._example(row, record) for row, record in enumerate(records, start=1)]

    def records(self, texts: Texts) -> list[Record]:
        """Return records of texts without labels, with the options that they bring.

        Raises:
            DataError: a text is missing or no text, or its options cannot be chosen among.
        """
        return as_records(texts, fields=self.template.field_names, answers=self.answers.in_rows())

    def check_fields(self, fields: Collection[str], where: str) -> None:
        """Raise TemplateError where the template names a field that is not among some; `where` is what has these."""
        missing = [name for name in self.template.field_names if name not in fields]
        if missing:
            raise TemplateError(
                f"template {self.template.source!r} names field {missing[0]!r}, but {where} has "
                f"{', '.join(map(repr, fields)) or 'no fields'}; change the template or the text columns"
            )

    def _example(self, row: int, record: Record) -> Example:
        fields = record.fields
        names = self.template.field_names
        if len(names) == 1 and len(fields) == 1:
            # With one field on both sides there is no doubt what is meant, whatever the column is called.
            fields = {names[0]: next(iter(fields.values()))}
        self.check_fields(fields, record.place(row))
        if record.label is None:
            return Example(fields, options=record.options)
        return Example(fields, self._gold(row, record), record.weight, record.options)

    def groups(self, records: Sequence[Record]) -> list[str | None]:
        """Return the groups `[N]` of records by which hold-outs are drawn, None of one without a label.

        Raises:
            DataError: a label is no answer of the task.
        """
        rows = [row for row, record in enumerate(records) if record.label is not None]
        names = self.answers.groups([self._gold(row + 1, records[row]) for row in rows])
        found: list[str | None] = [None] * len(records)
        for row, name in zip(rows, names, strict=True):
            found[row] = name
        return found

    def _gold(self, row: int, record: Record) -> Gold:
        try:
            return self.answers.gold(record)
        except DataError as error:
            raise DataError(f"{record.place(row)}: {error}") from None


class ShotEntry(BaseModel):
    """An example in front of every text: its text by field, its answer, and the options that it brings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: dict[str, str]
    label: Any
    options: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "options" or value}

    @classmethod
    def of(cls, shot: Shot, answers: AnswerSpace) -> ShotEntry:
        """Return the entry of an example."""
        return cls(fields=dict(shot.fields), label=answers.label(shot.gold), options=shot.options)

    def shot(self, answers: AnswerSpace) -> Shot:
        """Return the example."""
        record = Record(self.fields, self.label, options=self.options)
        return Shot(tuple(self.fields.items()), answers.gold(record), self.options)


#: What an entry had in place of `answers` while labels were the only kind.
_OLD = {"labels": "labels", "words": "label_words", "classes": "classes"}


class TaskEntry(BaseModel):
    """Template and answer space, examples in front of a text, turns of a chat template, how words are scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    answers: Annotated[AnswerSpace, PlainValidator(answer_space), PlainSerializer(answers_document)]
    max_tokens: int | None
    reserve: int
    shots: list[ShotEntry] = []
    nearest: int | None = None
    chat: Conversation | None = None
    norm: Norm | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "norm" or value is not None}

    @model_validator(mode="before")
    @classmethod
    def _of_labels(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.keys() >= set(_OLD.values()):
            rest = {name: value for name, value in given.items() if name not in _OLD.values()}
            return rest | {"answers": {"kind": "labels", **{name: given[old] for name, old in _OLD.items()}}}
        return given

    @classmethod
    def of(cls, task: Task) -> TaskEntry:
        """Return the entry of a task."""
        return cls(
            template=task.template.source,
            answers=answers_document(task.answers),
            max_tokens=task.max_tokens,
            reserve=task.reserve,
            shots=[ShotEntry.of(shot, task.answers) for shot in task.shots],
            nearest=task.nearest,
            chat=task.template.chat,
            norm=task.norm,
        )

    def task(self) -> Task:
        """Return the task."""
        shots = tuple(own.shot(self.answers) for own in self.shots)
        template = Template(self.template, self.chat)
        return Task(template, self.answers, self.max_tokens, self.reserve, shots, self.nearest, self.norm)
