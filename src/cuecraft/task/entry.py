"""A task as a manifest has it."""

from __future__ import annotations

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
    """Template and verbalizer, the examples in front of every text, and the turns that a chat template wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    classes: list[bool | int | float | str]
    labels: list[str]
    label_words: list[list[str]]
    max_tokens: int | None
    reserve: int
    shots: list[ShotEntry] = []
    chat: Conversation | None = None

    def task(self) -> Task:
        """Return the task."""
        words = tuple(tuple(own) for own in self.label_words)
        verbalizer = Verbalizer(tuple(self.labels), words)
        shots = tuple(Shot(tuple(own.fields.items()), verbalizer.index(own.label)) for own in self.shots)
        return Task(Template(self.template, self.chat), verbalizer, self.max_tokens, self.reserve, shots)


def shot_entries(task: Task) -> list[ShotEntry]:
    """Return the examples in front of every text as a manifest has them."""
    labels = task.verbalizer.labels
    return [ShotEntry(fields=dict(shot.fields), label=labels[shot.label]) for shot in task.shots]
