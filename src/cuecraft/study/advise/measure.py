"""A measurement of about a minute, how fast the backbone reads and how right it is untuned; and costs by it.

All times count tokens through the model. A forward pass is 1. A backward pass costs about as much again for the
gradient of what goes through, and once more for the gradient of the weights where they are trained (Kaplan et al.,
2020, arXiv 2001.08361, section 2.1). Epochs, and how much of a pass is held for its gradient, are set by what
trainings on 64 examples of SST-2 took (`benchmarks/results/compare_sst-2.json`: deep cue, LoRA, full fine-tuning, three
seeds each). Early stopping may end elsewhere on other data, so take all of it as right to within a factor of about two.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from cuecraft.artifact import Calibration, HardPrompt
from cuecraft.backbone import AnyBackbone, Budget, CausalBackbone, SequenceBackbone
from cuecraft.core.errors import CuecraftWarning
from cuecraft.core.events import Event, Progress
from cuecraft.core.seeding import numpy_generator
from cuecraft.data import Record
from cuecraft.methods.candidate import Candidate, fresh_logits
from cuecraft.methods.held_out import stratified_folds
from cuecraft.methods.search.word_choice import held_out_answers
from cuecraft.study.advise.survey import Lengths
from cuecraft.study.compare.statistics import wilson_interval
from cuecraft.task import Example, Field, PromptSlot, Task

LIMIT = 2000  # texts at most: an accuracy is then known to about two points either way
FOLDS = 5
_FIRST, _GROWTH = 4, 4  # texts of the first read, which warms up, and how much larger each later one may be
EPOCHS = 13  # 12 to 15 of at most 30
BATCH = 16
TRAIN_SHARE = 0.75  # of the labelled rows; the rest chooses
POOL_PROMPTS, POOL_TEXTS = 40, 512  # of a label-free choice
FROZEN, TRAINED = 2, 3  # forward passes that a pass with its gradient is worth; adapters took nearly as much as weights
HELD = 2  # times what a pass is estimated to hold


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
class Measurement:
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
) -> Measurement:
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
    fixed, capacity = renderer.template_length() + len(renderer.prompt_ids), renderer.capacity()
    lengths = [fixed + (n if capacity is None else min(n, capacity)) for n in renderer.text_lengths(examples)]
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
        report(Progress("reading", done, len(order)))
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
    return Measurement(tuple(order[:done]), logits, speed, clock() - begun)


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


class MethodWork(StrEnum):
    """What a method does with the model, as far as time and memory go."""

    READ = "read"  # every text once
    POOL = "pool"  # many prompts over some texts
    CUE = "cue"  # a prompt is trained, the weights are not
    ADAPTER = "adapter"  # small new weights are trained
    WEIGHTS = "weights"  # all weights are trained
    SEARCH = "search"  # as long as it is given


@dataclass(frozen=True)
class Sizes:
    """What costs depend on.

    Args:
        rows: that are learned from, dev rows among them.
        pool: texts that a label-free choice may look at.
        tokens: of one input, on average.
        cue: tokens that one more pass over a text that was read takes: the prompt's, or all where nothing is kept.
        tokens_per_second: measured.
        weights: bytes of the model.
        parameters: numbers in the model.
        kept_bytes: of keys and values of one token; 0 where nothing is kept of a text.
        kept_limit: bytes of keys and values at most.
        cue_bytes: that one row of a training of the prompt keeps for its gradient.
        row_bytes: that one row of a training of weights keeps for its gradient.
    """

    rows: int
    pool: int
    tokens: float
    cue: int
    tokens_per_second: float
    weights: int
    parameters: int
    kept_bytes: int
    kept_limit: int
    cue_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, backbone: AnyBackbone, task: Task, lengths: Lengths, speed: float, rows: int, pool: int) -> Sizes:
        """Gather the sizes; `speed` is in tokens a second, `rows` and `pool` are as above."""
        read = lengths.p95 if lengths.capacity is None else min(lengths.p95, lengths.capacity)
        long = math.ceil(read) + lengths.fixed
        is_kept = isinstance(backbone, CausalBackbone) and _texts_come_first(task)
        cue = lengths.cue if is_kept else math.ceil(lengths.input_tokens)
        parameters = list(backbone.model.parameters())
        return cls(
            rows=rows,
            pool=pool,
            tokens=lengths.input_tokens,
            cue=cue,
            tokens_per_second=speed,
            weights=sum(weight.nbytes for weight in parameters),
            parameters=sum(weight.numel() for weight in parameters),
            kept_bytes=math.prod(backbone.states_shape(1)) * backbone.model.dtype.itemsize if is_kept else 0,
            kept_limit=backbone.context_bytes if isinstance(backbone, CausalBackbone) else 0,
            cue_bytes=backbone.training_bytes(long - cue, cue) if is_kept else backbone.training_bytes(0, long),
            row_bytes=backbone.training_bytes(0, long),
        )


def _texts_come_first(task: Task) -> bool:
    """Return whether no text stands behind the prompt, so that a causal model need not read it again."""
    pieces = task.template.pieces
    prompt = next(n for n, piece in enumerate(pieces) if isinstance(piece, PromptSlot))
    return not any(isinstance(piece, Field) for piece in pieces[prompt:])


@dataclass(frozen=True)
class Cost:
    """About what a method takes.

    Args:
        seconds: of work after the model is loaded.
        bytes: of memory, the model's weights included.
    """

    seconds: float
    bytes: int


def expected(work: MethodWork, sizes: Sizes, epochs: int = EPOCHS, time_limit: float | None = None) -> Cost:
    r"""Return about what a kind of work takes.

    With n rows of L tokens on average, c tokens of cue, v tokens a second, E epochs, and w = 3/4 of the rows to train
    on and 1/4 to choose by:

    - read: ``n L / v``.
    - pool: ``u (L + T c) / v`` for T prompts over u texts, which are read once.
    - cue: ``n L / v`` to read the texts once and then ``E n (2 w + (1 - w)) c / v``. Where nothing is kept of a text
      (encoders) each epoch reads it again: L in the place of c.
    - adapter, weights: ``E n (3 w + (1 - w)) L / v``.
    - search: the time limit, and reading the texts.

    Memory is the weights and: keys and values of the texts where they are kept; for a training twice what a batch of
    16 rows is estimated to hold for its gradient, for a search 64 rows, as it trains several at once; for all weights
    five more sets of them in float32 (copy, gradient, AdamW's two moments, the best epoch). The process's own memory
    comes on top.
    """
    reading = sizes.rows * sizes.tokens / sizes.tokens_per_second
    kept = min(int(sizes.rows * sizes.tokens * sizes.kept_bytes), sizes.kept_limit)
    batch = min(BATCH, sizes.rows) * HELD

    def training(gradient: int, tokens: float) -> float:
        return epochs * sizes.rows * (gradient * TRAIN_SHARE + 1 - TRAIN_SHARE) * tokens / sizes.tokens_per_second

    if work is MethodWork.POOL:
        texts = min(POOL_TEXTS, sizes.pool)
        seconds = texts * (sizes.tokens + POOL_PROMPTS * sizes.cue) / sizes.tokens_per_second
        own = min(int(texts * sizes.tokens * sizes.kept_bytes), sizes.kept_limit)
    elif work is MethodWork.CUE:
        seconds, own = reading + training(FROZEN, sizes.cue), kept + batch * sizes.cue_bytes
    elif work is MethodWork.ADAPTER:
        seconds, own = training(TRAINED, sizes.tokens), batch * sizes.row_bytes
    elif work is MethodWork.WEIGHTS:
        seconds, own = training(TRAINED, sizes.tokens), batch * sizes.row_bytes + 5 * 4 * sizes.parameters
    elif work is MethodWork.SEARCH:
        assert time_limit is not None
        seconds, own = time_limit, kept + Budget.shared_rows * HELD * sizes.cue_bytes
    else:
        seconds, own = reading, kept
    return Cost(seconds, sizes.weights + own)
