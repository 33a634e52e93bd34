"""A measurement of about a minute: how fast the backbone reads, and how right it is untuned."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone, SequenceBackbone
from cuecraft.compare.statistics import wilson_interval
from cuecraft.data import Record
from cuecraft.errors import CuecraftWarning
from cuecraft.events import Event
from cuecraft.predictor import Candidate, fresh_logits
from cuecraft.prompts import Calibration, HardPrompt
from cuecraft.search.folds import stratified_folds
from cuecraft.search.word_choice import held_out_answers
from cuecraft.seeding import numpy_generator
from cuecraft.task import Example, Task

LIMIT = 2000  # texts at most: an accuracy is then known to about two points either way
FOLDS = 5
_FIRST, _GROWTH = 4, 4  # texts of the first read, which warms up, and how much larger each later one may be


@dataclass(frozen=True)
class Accuracy:
    """An accuracy on a sample.

    Args:
        hits: right answers.
        rows: answers.
    """

    hits: int
    rows: int

    @property
    def value(self) -> float:
        """The share of right answers."""
        return self.hits / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the accuracy."""
        return wilson_interval(self.value, self.rows)


@dataclass(frozen=True)
class Reading:
    """What the measurement found.

    Args:
        rows: numbers `[N]` of the rows that were read.
        logits: `[N, C]` of the untuned prompt; None of a backbone without words as answers.
        tokens_per_second: of whole inputs, read once and not kept.
        seconds: that all of it took.
    """

    rows: tuple[int, ...]
    logits: Tensor | None
    tokens_per_second: float
    seconds: float


def stratified_order(labels: Sequence[str | None], seed: int = 0) -> list[int]:
    """Return all row numbers in a random order of which every beginning has about the whole's class balance.

    The j-th of a class's n rows, counted from 0, stands at (j + 1/2) / n. So of the first share of the order each
    class has its share, to within one row.
    """
    strata: dict[str | None, list[int]] = {}
    for row in numpy_generator(seed, "advise/order").permutation(len(labels)).tolist():
        strata.setdefault(labels[row], []).append(row)
    places = [((j + 0.5) / len(rows), row) for rows in strata.values() for j, row in enumerate(rows)]
    return [row for _, row in sorted(places)]


def read_sample(
    backbone: AnyBackbone,
    task: Task,
    records: Sequence[Record],
    seconds: float,
    seed: int = 0,
    report: Callable[[Event], None] = lambda event: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Reading:
    """Read a stratified sample with the untuned prompt, as large as the time allows.

    The first few texts warm up. From then on the time per text, measured so far, says how many more fit. What was
    answered has no part in when to stop.

    Args:
        backbone: the frozen model.
        task: the task.
        records: with labels or without.
        seconds: that reading may take, about. The first few texts are read in any case.
        seed: of the sample.
        report: progress callback, called with each read.
        clock: seconds.

    Raises:
        CuecraftError: the task does not fit the backbone.
    """
    order = stratified_order([record.label for record in records], seed)[:LIMIT]
    examples = task.examples([Record(records[row].fields) for row in order])
    renderer = backbone.renderer(task)
    fixed, room = renderer.template_length() + len(renderer.prompt_ids), renderer.room()
    lengths = [fixed + (n if room is None else min(n, room)) for n in renderer.text_lengths(examples)]
    parts: list[Tensor] = []
    begun = clock()
    done, size = 0, _FIRST
    warm, rate_from = begun, 0  # from when on, and from which text on, reading is timed
    while done < len(order) and size:
        chunk = examples[done : done + size]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CuecraftWarning)  # how many are cut is said for all texts
            parts.append(_untuned(backbone, task, chunk))
        done += len(chunk)
        report({"phase": "reading", "step": done, "total": len(order)})
        now = clock()
        each = (now - warm) / (done - rate_from)
        fitting = int((seconds - (now - begun)) / each) if each > 0 else len(order)
        if rate_from == 0:
            speed = sum(lengths[:done]) / max(now - warm, 1e-9)
            warm, rate_from = now, done
        else:
            speed = sum(lengths[rate_from:done]) / max(now - warm, 1e-9)
        size = max(0, min(_GROWTH * size, fitting))
    logits = None if isinstance(backbone, SequenceBackbone) else torch.cat(parts)
    return Reading(tuple(order[:done]), logits, speed, clock() - begun)


@torch.no_grad()
def _untuned(backbone: AnyBackbone, task: Task, examples: Sequence[Example]) -> Tensor:
    """Return the untuned prompt's logits `[B, C]`, or features `[B, d]` of a backbone that has only those."""
    prompt = HardPrompt(backbone.renderer(task).prompt_ids)
    if isinstance(backbone, SequenceBackbone):
        return backbone.features(backbone.context(examples, task, keep_bytes=0), prompt)
    untuned = Candidate(prompt, Calibration.none(task.verbalizer.num_classes))
    return fresh_logits(backbone, task, [untuned], examples)[0].cpu()


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Return the accuracy of logits `[N, C]` against class numbers `[N]`."""
    return Accuracy(int((logits.argmax(-1) == labels).sum()), len(labels))


def calibrated_accuracy(logits: Tensor, labels: Tensor, seed: int = 0) -> Accuracy | None:
    """Return the accuracy after a calibration fitted to labels, cross-validated.

    Each of five stratified parts, or as many as the rarest class has rows, is answered with the calibration that the
    other parts were fitted to. So no label helps to answer its own text.

    Args:
        logits: `[N, C]` of the untuned prompt.
        labels: `[N]` class numbers.
        seed: of the parts.

    Returns:
        None where a class has one row only, or one class is all there is.
    """
    folds = stratified_folds(labels, FOLDS, seed) if len(labels.unique()) > 1 else []
    hits = 0
    for fold in folds:
        hits += accuracy(held_out_answers(logits, labels, fold), labels[fold.held_out]).hits
    return Accuracy(hits, len(labels)) if folds else None


def answer_shares(logits: Tensor) -> list[float]:
    """Return how often each class `[C]` is the answer."""
    counts = np.bincount(logits.argmax(-1).numpy(), minlength=logits.shape[1])
    return [float(count) for count in counts / counts.sum()]
