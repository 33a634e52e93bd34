"""Answer spaces: what counts as an answer. A new one is one module, and its name in the registry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from cuecraft.core.lazy import Registry
from cuecraft.task.answers.base import AnswerSpace, Decision, Gold, Values, softmax
from cuecraft.task.answers.labels import Verbalizer

__all__ = [
    "ANSWERS",
    "AnswerSpace",
    "Decision",
    "Gold",
    "Values",
    "Verbalizer",
    "answer_space",
    "answers_document",
    "softmax",
]

#: Answer spaces by kind; `cuecraft.methods.objectives.OBJECTIVES` has what methods minimise on each.
ANSWERS: Registry[AnswerSpace] = Registry({"labels": "cuecraft.task.answers.labels:Verbalizer"})


def answers_document(space: AnswerSpace) -> dict[str, Any]:
    """Return an answer space JSON-ready, as a manifest has it: its kind, and its fields."""
    return {"kind": space.kind, **TypeAdapter(type(space)).dump_python(space, mode="json")}


def answer_space(document: Mapping[str, Any]) -> AnswerSpace:
    """Return the answer space that a document stands for.

    Raises:
        ValueError: there is no such kind, or its fields cannot be read.
    """
    kind = str(document.get("kind"))
    if kind not in ANSWERS:
        raise ValueError(f"unknown kind of answers {kind!r}; there are {', '.join(ANSWERS)}")
    fields = {name: value for name, value in document.items() if name != "kind"}
    found: AnswerSpace = TypeAdapter(ANSWERS[kind]).validate_python(fields)
    return found
