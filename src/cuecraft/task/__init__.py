"""What is asked of a model: fields, template, and what counts as an answer. No torch here."""

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
