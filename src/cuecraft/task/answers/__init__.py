"""Answer spaces: what counts as an answer. A new one is one module, and its name in the registry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from cuecraft.core.errors import MethodError
from cuecraft.core.lazy import Registry
from cuecraft.core.options import make_options
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace, Decision, Gold, Values, softmax
from cuecraft.task.answers.labels import Verbalizer

__all__ = [
    "ANSWERS",
    "AnswerColumns",
    "AnswerOptions",
    "AnswerSpace",
    "Decision",
    "Gold",
    "Values",
    "Verbalizer",
    "answer_space",
    "answers_document",
    "asked_answers",
    "decision_document",
    "softmax",
    "with_options",
]

#: Answer spaces by kind; `cuecraft.methods.objectives.OBJECTIVES` has what methods minimise on each.
ANSWERS: Registry[AnswerSpace] = Registry(
    {
        "labels": "cuecraft.task.answers.labels:Verbalizer",
        "open-set": "cuecraft.task.answers.open_set:OpenSet",
        "choices": "cuecraft.task.answers.choices:Choices",
        "tokens": "cuecraft.task.answers.tokens:TokenLabels",
        "multilabel": "cuecraft.task.answers.multilabel:Multilabel",
        "ordinal": "cuecraft.task.answers.ordinal:Ordinal",
        "cloze": "cuecraft.task.answers.cloze:Cloze",
    }
)


def asked_answers(given: str | Mapping[str, Any]) -> AnswerOptions:
    """Return what a user asks of answers: a kind, or a kind with its options.

    Raises:
        MethodError: there is no such kind, or an option cannot be used.
    """
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = str(options.get("kind"))
    if kind not in ANSWERS:
        raise MethodError(f"unknown kind of answers {kind!r}; there are {', '.join(ANSWERS)}")
    return make_options(ANSWERS[kind].options_kind, options, f"answers of kind {kind}")


def with_options(given: str | Mapping[str, Any] | None, options: Mapping[str, Any]) -> str | Mapping[str, Any] | None:
    """Return a kind of answers with further options; without `kind` in it where the data is to show the kind.

    Args:
        given: a kind, a kind with its options, or None.
        options: by name; they replace those given before.

    Raises:
        MethodError: the kind has no such option.
    """
    if not options:
        return given
    answers = {**({"kind": given} if isinstance(given, str) else given or {}), **options}
    if "kind" in answers:
        asked_answers(answers)
    return answers


def answers_document(space: AnswerSpace) -> dict[str, Any]:
    """Return an answer space JSON-ready, as a manifest has it: its kind, and its fields."""
    return {"kind": space.kind, **TypeAdapter(type(space)).dump_python(space, mode="json")}


def decision_document(space: AnswerSpace, decision: Decision) -> dict[str, Any]:
    """Return a decision JSON-ready: value, confidence and options; of labels also `label` and `probabilities`.

    A number also has its `interval`.
    """
    options = dict(decision.options)
    found = {"value": decision.value, "confidence": decision.confidence, "options": options}
    if decision.interval is not None:
        found["interval"] = list(decision.interval)
    return {"label": str(decision.value), "probabilities": options, **found} if space.kind == "labels" else found


def answer_space(document: Any) -> AnswerSpace:
    """Return the answer space that a document stands for.

    Raises:
        ValueError: there is no such kind, or its fields cannot be read.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"answers are an object with a kind, not {document!r}")
    kind = str(document.get("kind"))
    if kind not in ANSWERS:
        raise ValueError(f"unknown kind of answers {kind!r}; there are {', '.join(ANSWERS)}")
    fields = {name: value for name, value in document.items() if name != "kind"}
    found: AnswerSpace = TypeAdapter(ANSWERS[kind]).validate_python(fields)
    return found
