"""A task as a manifest has it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from cuecraft.task.task import Shot, Task
from cuecraft.task.template import Conversation, Template
from cuecraft.task.verbalizer import Verbalizer


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
