"""Reading at answer slots: class scores over the label words' columns only, or features for a class head.

The model's output embedding is given, for one forward pass, a `forward` that looks at the answer slots alone and
multiplies by the label words' rows alone. So no `[B, L, V]` tensor is ever made, and whatever an architecture does
before its output embedding (transform, norm) or after it (soft-capping, scaling) stays the model's own code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cuecraft.backbone.base import ClassHead, FeatureScale
from cuecraft.backbone.hooks import passing
from cuecraft.core.errors import BackboneError, LabelWordError
from cuecraft.task.rendering import LabelIds

_SLICE_NUMBERS = 2**24  # logits of one slice of the vocabulary
_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


#: Turns the logits of one pass into what was asked for.
Scores = Callable[[Tensor], Tensor]


class Readout(ABC):
    """What is read at answer slots of a model with an output embedding.

    A readout holds no state of a pass, since several threads may read with one.
    """

    #: Sequences of ids to grow after the answer slot, which is read after each of them too.
    beginnings: list[tuple[int, ...]]
    #: Bytes that reading one slot takes, beyond what any pass takes.
    slot_bytes: int = 0

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()

    @contextmanager
    def reading(self, slots: Tensor, rows: Sequence[int] | None = None) -> Iterator[Scores]:
        """Have the model's output embedding read at slots of the sequence alone; yields as `picking`.

        Args:
            slots: `[B, R]`; R counts candidates times (1 + beginnings), the answer slot of each candidate first.
            rows: `[B]` the row of the pass that each lies in; None where they are the rows in order.
        """
        numbers = torch.arange(len(slots)) if rows is None else torch.tensor(rows)
        with self.picking(lambda hidden: hidden[numbers.to(hidden.device)[:, None], slots.to(hidden.device)]) as scores:
            yield scores

    @contextmanager
    def picking(self, pick: Callable[[Tensor], Tensor]) -> Iterator[Scores]:
        """Have the model's output embedding read alone what is picked, for one pass.

        Yields what turns the logits `[B, R, X]` of that pass into what is wanted of each candidate `[K, B, Y]` (float32
        at least). It belongs to the pass: another thread's pass with the same readout has its own.

        Args:
            pick: returns the hidden states `[B, R, d]` at the slots, given those of all positions `[b, N, d]`.

        Raises:
            BackboneError: the model did not call its output embedding.
        """
        kept: list[Any] = []  # one item after the pass: what `_logits` keeps for `_scores`

        def forward(hidden: Tensor) -> Tensor:
            logits, own = self._logits(pick(hidden))
            kept[:] = [own]
            return logits

        with passing(output=forward):
            yield lambda logits: self._scores(logits, kept[0])
            if not kept:
                raise BackboneError("this model makes its logits without calling its output embedding; use another")

    @abstractmethod
    def _logits(self, hidden: Tensor) -> tuple[Tensor, Any]:
        """Return what stands for the model's logits `[B, R, X]`, and what `_scores` needs besides.

        Args:
            hidden: `[B, R, d]` the hidden states at the slots.
        """

    @abstractmethod
    def _scores(self, logits: Tensor, kept: Any) -> Tensor:
        """Return what is wanted of each candidate `[K, B, Y]` (float32 at least).

        Args:
            logits: `[B, R, X]` the model's logits.
            kept: what `_logits` returned besides, in the same pass.
        """


def readout(model: Any, label_ids: LabelIds, head: ClassHead | None) -> Readout:
    """Return the readout of class scores: of a class head where there is one, else of label words."""
    return LabelReadout(model, label_ids) if head is None else FeatureReadout(model, head)


def class_scores(features: Tensor, head: ClassHead) -> Tensor:
    """Return class scores `[..., C]` of features `[..., d]`."""
    weight, bias = (part.to(features.device) for part in (head.weight, head.bias))
    return functional.linear(scaled_features(features.to(weight.dtype), head.scale), weight, bias)


def scaled_features(features: Tensor, scale: FeatureScale) -> Tensor:
    """Return features `[..., d]` as a class head of this scale reads them."""
    return functional.normalize(features, dim=-1) if scale is FeatureScale.UNIT else features


class FeatureReadout(Readout):
    """Hidden states at answer slots, or a class head's scores of them.

    Args:
        model: a model with an output embedding; features are what enters it.
        head: the class head; None for the features themselves.
    """

    def __init__(self, model: Any, head: ClassHead | None = None) -> None:
        super().__init__(model)
        self.beginnings = []
        self._class_head = head

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # Kept apart: an architecture may rescale what its output embedding returns.
        return hidden[..., :1], hidden

    def _scores(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Return features `[K, B, d]` or class scores `[K, B, C]`; the logits are not looked at."""
        found = kept.transpose(0, 1)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return found if self._class_head is None else class_scores(found, self._class_head)


class LabelReadout(Readout):
    """Class scores from the hidden states at answer slots, for one model and one set of label words.

    A class's score is the log of the summed probabilities of its words, up to a constant that is the same for all
    classes. A word of several tokens is scored exactly: its first token at the answer slot, each further token
    after the word's beginning, normalised over the whole vocabulary.

    Args:
        model: a model with an output embedding.
        label_ids: class -> word -> token ids.

    Raises:
        LabelWordError: words of several tokens, but the model rescales its logits after the output embedding.
    """

    def __init__(self, model: Any, label_ids: LabelIds) -> None:
        super().__init__(model)
        words = [ids for class_words in label_ids for ids in class_words]
        #: Beginnings of label words, `[I]` tuples of ids: branches to grow after the answer slot.
        self.beginnings = sorted({ids[:n] for ids in words for n in range(1, len(ids))})
        if self.beginnings and any(getattr(model.config, name, None) for name in _RESCALING):
            raise LabelWordError("this backbone rescales its logits; give label words of one token each")
        columns = sorted({token for ids in words for token in ids})
        device = self._head.weight.device
        self._rows = torch.tensor(columns, device=device)
        reads = {ids: number for number, ids in enumerate([(), *self.beginnings])}
        places = {token: number for number, token in enumerate(columns)}
        self._words = [[(reads[ids[:n]], places[token]) for n, token in enumerate(ids)] for ids in words]
        sizes = [len(class_words) for class_words in label_ids]
        self._class_words = torch.split(torch.arange(len(words)), sizes)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the words' columns `[B, R, W]`, and the normalisers `[B, K, I]` after the words' beginnings."""
        norm = None
        if self.beginnings:
            reads = 1 + len(self.beginnings)
            after = hidden.unflatten(1, (-1, reads))[:, :, 1:]  # the answer slot itself needs no normaliser
            norm = _log_normalisers(after, self._head.weight, self._head.bias)
        bias = None if self._head.bias is None else self._head.bias[self._rows]
        return functional.linear(hidden, self._head.weight[self._rows], bias), norm

    def _scores(self, logits: Tensor, kept: Tensor | None) -> Tensor:
        """Turn the model's logits `[B, K * (1 + I), W]` into class scores `[K, B, C]` (float32 at least)."""
        reads = 1 + len(self.beginnings)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        table = logits.unflatten(1, (-1, reads))  # [B, K, 1 + I, W]
        words = []
        for steps in self._words:
            score = table[:, :, 0, steps[0][1]]
            for read, column in steps[1:]:
                assert kept is not None
                score = score + table[:, :, read, column] - kept[:, :, read - 1]
            words.append(score)
        scores = torch.stack(words, dim=-1)  # [B, K, words]
        classes = [scores[..., rows.to(scores.device)].logsumexp(-1) for rows in self._class_words]
        return torch.stack(classes, dim=-1).transpose(0, 1)


class MixedReadout(Readout):
    """Readouts of several prompts, each at its own rows of one pass.

    Args:
        model: a model with an output embedding.
        rows: `[b]` each row's readout.
    """

    def __init__(self, model: Any, rows: Sequence[Readout]) -> None:
        super().__init__(model)
        self.beginnings = []
        self._parts = [
            (reads, [row for row, own in enumerate(rows) if own is reads])
            for reads in {id(own): own for own in rows}.values()
        ]

    def _logits(self, hidden: Tensor) -> tuple[Tensor, list[tuple[int, int, Any]]]:
        """Return each row's own `[b, R, X]`, zeros behind what its readout returns; and each readout's R, X and own."""
        parts = [reads._logits(hidden[rows, : 1 + len(reads.beginnings)]) for reads, rows in self._parts]
        kept = [(logits.shape[1], logits.shape[2], own) for logits, own in parts]
        found = hidden.new_zeros(*hidden.shape[:2], max(width for _, width, _ in kept))
        for (_, rows), (logits, _) in zip(self._parts, parts, strict=True):
            found[rows, : logits.shape[1], : logits.shape[2]] = logits
        return found, kept

    def _scores(self, logits: Tensor, kept: list[tuple[int, int, Any]]) -> Tensor:
        """Return class scores `[1, b, C]`, zeros behind a row's own classes."""
        parts = [
            reads._scores(logits[rows, :count, :width], own)[0]
            for (reads, rows), (count, width, own) in zip(self._parts, kept, strict=True)
        ]
        found = parts[0].new_zeros(1, len(logits), max(part.shape[1] for part in parts))
        for (_, rows), part in zip(self._parts, parts, strict=True):
            found[0, rows, : part.shape[1]] = part
        return found


class WordReadout(Readout):
    """Log-probabilities of the whole vocabulary at answer slots.

    Args:
        model: a model with an output embedding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.beginnings = []
        # The logits, a float32 copy and what the softmax makes of it.
        self.slot_bytes = self._head.weight.shape[0] * (self._head.weight.element_size() + 8)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return the logits of all words `[B, R, V]`."""
        return functional.linear(hidden, self._head.weight, self._head.bias), None

    def _scores(self, logits: Tensor, kept: None) -> Tensor:
        """Return log-probabilities `[K, B, V]`."""
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).transpose(0, 1)


class SequenceReadout(WordReadout):
    """Log-probabilities of whole sequences of tokens that stand where the answer would.

    Args:
        model: a model with an output embedding.
        sequences: `[W]` sequences of ids, none empty.
    """

    def __init__(self, model: Any, sequences: Sequence[tuple[int, ...]]) -> None:
        super().__init__(model)
        self.beginnings = sorted({ids[:n] for ids in sequences for n in range(1, len(ids))})
        reads = {ids: n for n, ids in enumerate([(), *self.beginnings])}
        self._steps = [(k, reads[ids[:n]], token) for k, ids in enumerate(sequences) for n, token in enumerate(ids)]
        self._count = len(sequences)

    def _scores(self, logits: Tensor, kept: None) -> Tensor:
        """Return the sequences' log-probabilities `[K, B, W]`."""
        log_p = super()._scores(logits, kept).unflatten(0, (-1, 1 + len(self.beginnings)))  # [K, 1 + I, B, V]
        sequence, read, token = torch.tensor(self._steps, device=log_p.device).unbind(1)
        steps: Tensor = log_p.permute(0, 2, 1, 3)[:, :, read, token]
        sums: Tensor = steps.new_zeros(*steps.shape[:2], self._count).index_add(2, sequence, steps)
        return sums


def _log_normalisers(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``logsumexp`` over the vocabulary `[...]` of hidden states `[..., d]`, a slice of it at a time."""
    # A graph in progress has no batch size yet, and takes the vocabulary in one piece.
    is_graph = torch.compiler.is_exporting()
    step = weight.shape[0] if is_graph else max(1, _SLICE_NUMBERS // hidden[..., 0].numel())

    def part(hidden: Tensor, start: int) -> Tensor:
        stop = start + step
        logits = functional.linear(hidden, weight[start:stop], None if bias is None else bias[start:stop])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1)

    if is_graph:
        return part(hidden, 0)
    # Checkpointed, so that a training step holds one slice of the vocabulary at a time.
    parts = [checkpoint(part, hidden, start, use_reentrant=False) for start in range(0, weight.shape[0], step)]
    return torch.stack(parts, dim=-1).logsumexp(-1)
