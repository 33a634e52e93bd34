"""A task as a manifest has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from cuecraft.task.task import Task
from cuecraft.task.template import Template
from cuecraft.task.verbalizer import Verbalizer


class TaskEntry(BaseModel):
    """Template and verbalizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    classes: list[bool | int | float | str]
    labels: list[str]
    label_words: list[list[str]]
    max_tokens: int | None
    reserve: int

    def task(self) -> Task:
        """Return the task."""
        words = tuple(tuple(own) for own in self.label_words)
        return Task(Template(self.template), Verbalizer(tuple(self.labels), words), self.max_tokens, self.reserve)
