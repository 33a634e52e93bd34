"""What is asked of a model: fields, template, classes and label words. No torch here."""

from cuecraft.task.task import Example, Shot, Task
from cuecraft.task.template import Conversation, Field, Literal, MaskSlot, PromptSlot, Template
from cuecraft.task.verbalizer import Verbalizer

__all__ = [
    "Conversation",
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
