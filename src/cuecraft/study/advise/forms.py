"""Plain or chat: both measured where the tokenizer has a chat template and the user fixed neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.core.errors import CuecraftError
from cuecraft.core.events import Event
from cuecraft.data import Record
from cuecraft.methods.auto.forms import is_clear
from cuecraft.methods.evidence import compare_paired
from cuecraft.methods.held_out import stratified_folds
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.prepare import written_template
from cuecraft.methods.search.word_choice import held_out_answers
from cuecraft.study.advise.measure import FOLDS, Measurement, accuracy, read_sample
from cuecraft.study.advise.rules import AdviseRequest
from cuecraft.task import Task
from cuecraft.task.chat import has_chat_template
from cuecraft.task.rendering import HeadKind


@dataclass(frozen=True)
class Measured:
    """What was read.

    Args:
        task: in the form that is advised.
        reading: of it.
        forms: accuracy, calibrated and cross-validated, of each form, the one chosen, and the p-value of their
            difference, JSON-ready; None where only one was tried.
    """

    task: Task
    reading: Measurement
    forms: dict[str, Any] | None = None

    @property
    def is_chat(self) -> bool:
        """Whether the chat template was tried and found better."""
        return self.forms is not None and self.forms["chosen"] == "chat"


def measure_forms(
    request: AdviseRequest,
    backbone: AnyBackbone,
    task: Task,
    records: Sequence[Record],
    started: Callable[[str], Callable[[Event], None]],
) -> Measured:
    """Read a sample with the untuned prompt, in the plain template and in the chat template where both are tried.

    The time limit is shared among them.

    Args:
        request: what was asked for.
        backbone: the frozen model.
        task: in the template asked for, or the general one.
        records: with labels or without; without, nothing is compared.
        started: called with what begins.

    Raises:
        CuecraftError: the task does not fit the backbone.
    """
    chat = _in_chat(request, backbone, task) if records[0].label is not None else None
    seconds = request.time_limit / (1 if chat is None else 2)
    plain = read_sample(backbone, task, records, seconds, request.seed, started("measuring"))
    if chat is None or plain.logits is None:
        return Measured(task, plain)
    other = read_sample(backbone, chat, records, seconds, request.seed, started("measuring the chat template"))
    assert other.logits is not None
    count = min(len(plain.rows), len(other.rows))  # the same rows, in the same order
    golds = Golds(objective_of(task.answers), tuple(task.answers.gold(records[row]) for row in plain.rows[:count]))
    found = _compared(plain.logits[:count], other.logits[:count], golds, request.seed)
    is_chat = found["chosen"] == "chat"
    return Measured(chat if is_chat else task, other if is_chat else plain, found)


def _in_chat(request: AdviseRequest, backbone: AnyBackbone, task: Task) -> Task | None:
    """Return the task in the chat template; None where it is not tried, or cannot be written so."""
    is_open = request.task.template is None and request.task.choice is None
    if not is_open or backbone.head_kind is not HeadKind.CAUSAL or not has_chat_template(backbone.tokenizer):
        return None
    try:
        template = written_template(backbone, task.template.field_names, chat=True)
        found = replace(task, template=template)
        backbone.renderer(found).capacity()
    except CuecraftError:
        return None
    return found


def _compared(plain: Tensor, chat: Tensor, golds: Golds, seed: int) -> dict[str, Any]:
    """Return how the logits `[N, C]` of both forms compare once calibrated, every part by the labels of the others."""
    labels = golds.classes
    folds = stratified_folds(labels, FOLDS, seed) if len(labels.unique()) > 1 else []
    rows = [row for fold in folds for row in fold.held_out] if folds else list(range(len(labels)))
    parts = []
    for logits in (plain, chat):
        own = torch.cat([held_out_answers(logits, labels, fold) for fold in folds]) if folds else logits
        parts.append(own.double().log_softmax(-1))
    answered = golds.select(rows)
    evidence = compare_paired(answered.scores(parts[1]), answered.scores(parts[0]), seed)
    return {
        "chosen": "chat" if is_clear(evidence) else "plain",
        "rows": len(labels),
        "plain_accuracy": accuracy(parts[0], labels[rows]).value,
        "chat_accuracy": accuracy(parts[1], labels[rows]).value,
        "p_loss": evidence.p_loss,
    }
