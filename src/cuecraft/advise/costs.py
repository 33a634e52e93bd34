"""What a method will take, from the measured speed and the sizes: about, and before anything of it was run.

All times count tokens through the model. A forward pass is 1. A backward pass costs about as much again for the
gradient of what goes through, and once more for the gradient of the weights where they are trained (Kaplan et al.,
2020, arXiv 2001.08361, section 2.1). Epochs, and how much of a pass is held for its gradient, are set by what
trainings on 64 examples of SST-2 took (benchmarks/results/compare_sst-2.json: deep cue, LoRA, full fine-tuning, three
seeds each). Early stopping may end elsewhere on other data, so take all of it as right to within a factor of about
two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from cuecraft.advise.lengths import Lengths
from cuecraft.backbone import AnyBackbone, Budget, CausalBackbone
from cuecraft.task import Field, PromptSlot, Task

EPOCHS = 13  # 12 to 15 of at most 30
BATCH = 16
TRAIN_SHARE = 0.75  # of the labelled rows; the rest chooses
POOL_PROMPTS, POOL_TEXTS = 40, 512  # of a label-free choice
FROZEN, TRAINED = 2, 3  # forward passes that a pass with its gradient is worth; adapters took nearly as much as weights
HELD = 2  # times what a pass is estimated to hold


class Work(StrEnum):
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
        long = math.ceil(lengths.p95 if lengths.room is None else min(lengths.p95, lengths.room)) + lengths.fixed
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


def expected(work: Work, sizes: Sizes, epochs: int = EPOCHS, time_limit: float | None = None) -> Cost:
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

    if work is Work.POOL:
        texts = min(POOL_TEXTS, sizes.pool)
        seconds = texts * (sizes.tokens + POOL_PROMPTS * sizes.cue) / sizes.tokens_per_second
        own = min(int(texts * sizes.tokens * sizes.kept_bytes), sizes.kept_limit)
    elif work is Work.CUE:
        seconds, own = reading + training(FROZEN, sizes.cue), kept + batch * sizes.cue_bytes
    elif work is Work.ADAPTER:
        seconds, own = training(TRAINED, sizes.tokens), batch * sizes.row_bytes
    elif work is Work.WEIGHTS:
        seconds, own = training(TRAINED, sizes.tokens), batch * sizes.row_bytes + 5 * 4 * sizes.parameters
    elif work is Work.SEARCH:
        assert time_limit is not None
        seconds, own = time_limit, kept + Budget.shared_rows * HELD * sizes.cue_bytes
    else:
        seconds, own = reading, kept
    return Cost(seconds, sizes.weights + own)
