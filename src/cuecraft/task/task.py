"""A task: template, verbalizer, the examples made of records; and a task as a manifest has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from cuecraft.core.errors import DataError, TemplateError
from cuecraft.data import Record
from cuecraft.task.template import Conversation, Template
from cuecraft.task.verbalizer import Verbalizer


@dataclass(frozen=True)
class Example:
    """One text to classify: its fields and, where known, the number of its class and its weight in a training."""

    fields: Mapping[str, str]
    label: int | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Shot:
    """A labelled example that stands in front of every text.

    Args:
        fields: pairs of a field's name and its text.
        label: the number of its class.
    """

    fields: tuple[tuple[str, str], ...]
    label: int


@dataclass(frozen=True)
class Task:
    """What is asked of the backbone.

    Args:
        template: where the fields, the tuned tokens and the answer stand.
        verbalizer: the classes and their label words.
        max_tokens: tokens of one input at most, cue included; None for as many as the backbone has positions.
        reserve: positions kept free for tuned tokens when texts are cut to fit.
        shots: labelled examples in front of every text, first to last; each is written in the template with the
            template's own words in the prompt slot and the first label word of its class.
        nearest: of the shots, how many stand in front of a text, those nearest to it by the backbone's features, the
            nearest last; None for all of them in front of every text.

    Raises:
        DataError: `max_tokens`, `reserve` or `nearest` is not positive, or a shot is of no class.
        TemplateError: a shot lacks a field that the template names, or the system's turn of a chat has a slot, which
            several rounds of one conversation cannot fill.
    """

    template: Template
    verbalizer: Verbalizer
    max_tokens: int | None = None
    reserve: int = 32
    shots: tuple[Shot, ...] = ()
    nearest: int | None = None

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
            if not 0 <= shot.label < self.verbalizer.num_classes:
                raise DataError(
                    f"example {number} in the prompt is of class number {shot.label}; there is no such class"
                )
            self.check_fields(dict(shot.fields), f"example {number} in the prompt")
        if self.max_tokens is not None and self.max_tokens <= self.reserve:
            raise DataError(
                f"max_tokens is {self.max_tokens} and {self.reserve} are kept for the prompt; allow more tokens"
            )

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Turn records into examples.

        Raises:
            TemplateError: the template names a field that a record does not have.
            DataError: a label is not one of the classes.
        """
        return [self._example(row, record) for row, record in enumerate(records, start=1)]

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
        self.check_fields(fields, f"row {row}")
        if record.label is None:
            return Example(fields)
        try:
            return Example(fields, self.verbalizer.index(record.label), record.weight)
        except DataError as error:
            raise DataError(f"row {row}: {error}") from None


class ShotEntry(BaseModel):
    """A labelled example in front of every text: its text by field, and its class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: dict[str, str]
    label: str


class TaskEntry(BaseModel):
    """Template and verbalizer, examples in front of a text, all or the nearest, and the turns of a chat template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    classes: list[bool | int | float | str]
    labels: list[str]
    label_words: list[list[str]]
    max_tokens: int | None
    reserve: int
    shots: list[ShotEntry] = []
    nearest: int | None = None
    chat: Conversation | None = None

    @classmethod
    def of(cls, task: Task, classes: Sequence[bool | int | float | str]) -> TaskEntry:
        """Return the entry of a task, with its classes `[C]` as the user's data has them."""
        labels, words = task.verbalizer.labels, task.verbalizer.words
        return cls(
            template=task.template.source,
            classes=list(classes),
            labels=list(labels),
            label_words=[list(own) for own in words],
            max_tokens=task.max_tokens,
            reserve=task.reserve,
            shots=[ShotEntry(fields=dict(shot.fields), label=labels[shot.label]) for shot in task.shots],
            nearest=task.nearest,
            chat=task.template.chat,
        )

    def task(self) -> Task:
        """Return the task."""
        words = tuple(tuple(own) for own in self.label_words)
        verbalizer = Verbalizer(tuple(self.labels), words)
        shots = tuple(Shot(tuple(own.fields.items()), verbalizer.index(own.label)) for own in self.shots)
        template = Template(self.template, self.chat)
        return Task(template, verbalizer, self.max_tokens, self.reserve, shots, self.nearest)
