"""Reading no more examples than a method wants, in the time that it has for that."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence

import torch

from cuecraft.backbone import AnyBackbone
from cuecraft.data import Record
from cuecraft.deadline import WhileTimeLasts
from cuecraft.errors import CuecraftWarning
from cuecraft.method import Labelled, ReadingLimit, label_context
from cuecraft.prompts import HardPrompt
from cuecraft.search.elimination import halving_rounds
from cuecraft.seeding import numpy_generator
from cuecraft.task import Task

_TOGETHER = 64  # examples that are read together, at most
#: Of a method that wants everything, where there is a time limit: a pass that answers takes as long again.
WITHIN_TIME = ReadingLimit(sys.maxsize, 1 / 3)


def read_within(
    backbone: AnyBackbone,
    task: Task,
    parts: Sequence[Sequence[Record]],
    seed: int,
    limit: ReadingLimit,
    time_limit: float | None,
) -> tuple[list[Labelled | None], list[list[Record]]]:
    """Read as many examples of each part as a method wants and has time for, classes in turn.

    Args:
        backbone: the frozen model.
        task: the task.
        parts: training and dev examples; each gives the same share of its own.
        seed: of the choice.
        limit: how much is wanted.
        time_limit: of the whole run, in seconds from now; None for none.

    Returns:
        The contexts, None for an empty part; and the examples that were read, in their own order.
    """
    total = sum(map(len, parts))
    wanted = min(1.0, limit.examples / max(1, total))
    begun = time.monotonic()
    contexts: list[Labelled | None] = []
    kept: list[list[Record]] = []
    for part in parts:
        labels = [task.verbalizer.index(str(record.label)) for record in part]
        order = [n for rows in halving_rounds(labels, numpy_generator(seed, "reading")) for n in rows]
        order = order[: max(min(len(part), 2 * task.verbalizer.num_classes), round(wanted * len(part)))]
        until = None if time_limit is None else begun + time_limit * limit.share * (len(part) / max(1, total))
        order, context = _read(backbone, task, part, order, until)
        begun = time.monotonic()
        contexts.append(context)
        kept.append([part[n] for n in order])
    read = sum(map(len, kept))
    if read < total:
        warnings.warn(
            f"{read} of {total} labelled examples are used; a longer --time-limit{_or_preset(limit)} uses more, and "
            "LoRA or full fine-tuning may be better with so many",
            CuecraftWarning,
            stacklevel=2,
        )
    return contexts, kept


def _or_preset(limit: ReadingLimit) -> str:
    return "" if limit is WITHIN_TIME else " or a greater preset"


def read_unlabelled_within(backbone: AnyBackbone, task: Task, records: Sequence[Record], until: float) -> Labelled:
    """Read texts without labels in their order until a time (monotonic clock, seconds), a few at least."""
    _, found = _read(backbone, task, records, range(len(records)), until)
    assert found is not None
    return found


@torch.no_grad()
def _read(
    backbone: AnyBackbone, task: Task, records: Sequence[Record], order: Sequence[int], until: float | None
) -> tuple[list[int], Labelled | None]:
    """Read records in an order until a time; return which were read, in their own order, and their context."""
    found: Labelled | None = None
    taken: list[int] = []
    enough = 2 * task.verbalizer.num_classes  # classes take turns

    def is_over() -> bool:
        return until is not None and len(taken) >= enough and time.monotonic() >= until

    while len(taken) < len(order) and not is_over():
        size = _TOGETHER if until is None else min(_TOGETHER, max(enough, len(taken)))
        rows = list(order[len(taken) : len(taken) + size])
        with WhileTimeLasts(is_over):
            context = label_context(backbone, task, task.examples([records[n] for n in rows]))
            if context.context.states[0] is None:
                # Nothing is kept of such texts, so that reading costs nothing and every pass over them costs all.
                backbone.features(context.context, HardPrompt(context.context.renderer.prompt_ids))
            found = context if found is None else found.joined(context)
            taken += rows
    if found is None:
        return [], None
    places = sorted(range(len(taken)), key=lambda place: taken[place])
    return [taken[place] for place in places], found.select(places)
