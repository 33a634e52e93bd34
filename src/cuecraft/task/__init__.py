"""What is asked of a model: fields, template, and what counts as an answer. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.task.answers import AnswerSpace, Decision, Verbalizer
    from cuecraft.task.example import Example
    from cuecraft.task.task import Shot, Task
    from cuecraft.task.template import Conversation, Field, Literal, MaskSlot, PromptSlot, Template

__all__ = [
    "AnswerSpace",
    "Conversation",
    "Decision",
    "Example",
    "Field",
    "Literal",
    "MaskSlot",
    "PromptSlot",
    "Shot",
    "Task",
    "Template",
    "Verbalizer",
]

# Loaded on first use: the command line reads `sections` for its help, which needs no NumPy.
_HOMES = {
    "answers": ("AnswerSpace", "Decision", "Verbalizer"),
    "example": ("Example",),
    "task": ("Shot", "Task"),
    "template": ("Conversation", "Field", "Literal", "MaskSlot", "PromptSlot", "Template"),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
