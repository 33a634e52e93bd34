"""Reading at answer slots: scores of options over their words' columns only, features, or the whole vocabulary.

A pass gives the model's output embedding another task (`Pass.output`): to look at the answer slots alone and to
multiply by the rows that are asked for alone. So no `[B, L, V]` tensor is ever made, and whatever an architecture does
before its output embedding (transform, norm) or after it (soft-capping, scaling) stays the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone.hooks import computed_again
from cuecraft.backbone.prompt import ClassHead, FeatureScale
from cuecraft.backbone.query import Query
from cuecraft.backbone.tree import children_of
from cuecraft.core.errors import LabelWordError
from cuecraft.task.fitting import LabelIds

_SLICE_NUMBERS = 2**24  # logits of one slice of the vocabulary
_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, eq=False)
class Columns:
    """What is read at slots. It holds nothing of a pass, since several threads may read with one.

    R slots count K prompts times (1 + beginnings), the answer slot of each prompt first.

    Args:
        logits: given the hidden states at the slots `[B, R, d]`, returns what stands for the model's logits
            `[B, R, X]`, and what `scores` needs of them besides.
        scores: given the model's logits `[B, R, X]` and that, returns what is wanted of each prompt `[K, B, Y]`
            (float32 at least).
        beginnings: sequences of ids to grow after the answer slot, which is read after each of them too.
        slot_bytes: bytes that reading one slot takes, beyond what any pass takes.
    """

    logits: Callable[[Tensor], tuple[Tensor, Any]]
    scores: Callable[[Tensor, Any], Tensor]
    beginnings: Sequence[tuple[int, ...]] = ()
    slot_bytes: int = 0


def columns_of(model: Any, query: Query, head: ClassHead | None) -> Columns:
    """Return the columns of a query to a model with an output embedding; a prompt's class head answers for options.

    Raises:
        LabelWordError: words of several tokens, but the model rescales its logits after the output embedding.
    """
    if query.read == "features" or head is not None:
        return feature_columns(None if query.read == "features" else head)
    embedding = model.get_output_embeddings()
    if query.read == "vocabulary":
        return _vocabulary_columns(embedding)
    if query.norm == "vocabulary":
        return _sequence_columns(embedding, [words[0] for words in query.options])
    found = option_columns(embedding, query.options, query.norm)
    if found.beginnings and query.norm == "row" and any(getattr(model.config, name, None) for name in _RESCALING):
        raise LabelWordError("this backbone rescales its logits; give label words of one token each")
    return found


def class_scores(features: Tensor, head: ClassHead) -> Tensor:
    """Return class scores `[..., C]` of features `[..., d]`."""
    weight, bias = (part.to(features.device) for part in (head.weight, head.bias))
    return functional.linear(scaled_features(features.to(weight.dtype), head.scale), weight, bias)


def scaled_features(features: Tensor, scale: FeatureScale) -> Tensor:
    """Return features `[..., d]` as a class head of this scale reads them."""
    return functional.normalize(features, dim=-1) if scale is FeatureScale.UNIT else features


def _single(numbers: Tensor) -> Tensor:
    """Return numbers in float32 at least."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def feature_columns(head: ClassHead | None = None) -> Columns:
    """Return columns that give the hidden states at answer slots `[K, B, d]`, or a class head's scores `[K, B, C]`."""

    def scores(logits: Tensor, hidden: Tensor) -> Tensor:
        found = _single(hidden.transpose(0, 1))
        return found if head is None else class_scores(found, head)

    # Hidden states are kept apart: an architecture may rescale what its output embedding returns.
    return Columns(lambda hidden: (hidden[..., :1], hidden), scores)


def option_columns(embedding: Any, options: LabelIds, norm: Literal["row", "siblings"] = "row") -> Columns:
    """Return columns that give the scores of options `[K, B, O]`.

    An option's score is the log of the summed probabilities of its words, up to a constant that is the same for all
    options. A word of several tokens is scored by its first token at the answer slot and each further token after the
    word's beginning.

    Args:
        embedding: the output embedding.
        options: option -> word -> token ids.
        norm: over what further tokens are normalised: `row` for the whole vocabulary, exactly; `siblings` for the
            tokens with which words go on there, so that a token without siblings adds nothing and is not read.
    """
    words = [ids for own in options for ids in own]
    following = children_of(words)
    beginnings = sorted(own for own, codes in following.items() if own and (norm == "row" or len(codes) > 1))
    tokens = sorted({token for ids in words for token in ids})
    rows = torch.tensor(tokens, device=embedding.weight.device)
    reads = {ids: number for number, ids in enumerate([(), *beginnings])}
    places = {token: number for number, token in enumerate(tokens)}
    steps_of_words = [
        [(reads[ids[:n]], places[token]) for n, token in enumerate(ids) if ids[:n] in reads] for ids in words
    ]
    siblings = [[places[token] for token in following[own]] for own in beginnings] if norm == "siblings" else []
    words_of_options = torch.split(torch.arange(len(words)), [len(own) for own in options])

    def logits(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the words' columns `[B, R, W]`, and normalisers over the vocabulary `[B, K, I]` after beginnings."""
        over_all = None
        if beginnings and not siblings:
            after = hidden.unflatten(1, (-1, len(reads)))[:, :, 1:]  # the answer slot itself needs no normaliser
            over_all = _log_normalisers(after, embedding.weight, embedding.bias)
        weight, bias = embedding.weight, embedding.bias
        if len(rows) < len(weight):
            weight, bias = weight[rows], None if bias is None else bias[rows]
        return functional.linear(hidden, weight, bias), over_all

    def scores(logits: Tensor, over_all: Tensor | None) -> Tensor:
        table = _single(logits).unflatten(1, (-1, len(reads)))  # [B, K, 1 + I, W]
        norms = over_all
        if siblings:
            own = [table[:, :, 1 + read, columns].logsumexp(-1) for read, columns in enumerate(siblings)]
            norms = torch.stack(own, dim=-1)
        found = []
        for steps in steps_of_words:
            score = table[:, :, 0, steps[0][1]]
            for read, column in steps[1:]:
                assert norms is not None
                score = score + table[:, :, read, column] - norms[:, :, read - 1]
            found.append(score)
        of_words = torch.stack(found, dim=-1)  # [B, K, words]
        of_options = [of_words[..., own.to(of_words.device)].logsumexp(-1) for own in words_of_options]
        return torch.stack(of_options, dim=-1).transpose(0, 1)

    return Columns(logits, scores, beginnings)


def row_columns(rows: Sequence[Columns]) -> Columns:
    """Return columns of one prompt a row, each row's own `[1, b, Y]`, zeros behind what a row reads.

    Its beginnings are those of its rows: each row's slots are its own, as many as any row has.
    """
    if all(own is rows[0] for own in rows):
        return rows[0]
    parts = [
        (own, [row for row, other in enumerate(rows) if other is own])
        for own in {id(own): own for own in rows}.values()
    ]

    def logits(hidden: Tensor) -> tuple[Tensor, list[tuple[int, int, Any]]]:
        """Return each row's own `[b, R, X]`, zeros behind what it reads; and of each part R, X and what it keeps."""
        own = [part.logits(hidden[numbers, : 1 + len(part.beginnings)]) for part, numbers in parts]
        found = hidden.new_zeros(*hidden.shape[:2], max(logits.shape[2] for logits, _ in own))
        for (_, numbers), (logits, _) in zip(parts, own, strict=True):
            found[numbers, : logits.shape[1], : logits.shape[2]] = logits
        return found, [(logits.shape[1], logits.shape[2], kept) for logits, kept in own]

    def scores(logits: Tensor, kept: list[tuple[int, int, Any]]) -> Tensor:
        found = [
            part.scores(logits[numbers, :count, :width], own)[0]
            for (part, numbers), (count, width, own) in zip(parts, kept, strict=True)
        ]
        joined = found[0].new_zeros(1, len(logits), max(own.shape[1] for own in found))
        for (_, numbers), own in zip(parts, found, strict=True):
            joined[0, numbers, : own.shape[1]] = own
        return joined

    return Columns(logits, scores)


def _vocabulary_columns(embedding: Any, beginnings: Sequence[tuple[int, ...]] = ()) -> Columns:
    """Return columns that give the log-probabilities of the whole vocabulary `[K * (1 + beginnings), B, V]`."""
    return Columns(
        lambda hidden: (functional.linear(hidden, embedding.weight, embedding.bias), None),
        lambda logits, kept: _single(logits).log_softmax(-1).transpose(0, 1),
        beginnings,
        # The logits, a float32 copy and what the softmax makes of it.
        embedding.weight.shape[0] * (embedding.weight.element_size() + 8),
    )


def _sequence_columns(embedding: Any, sequences: Sequence[tuple[int, ...]]) -> Columns:
    """Return columns that give the log-probabilities `[K, B, W]` of whole sequences in the place of the answer."""
    beginnings = sorted({ids[:n] for ids in sequences for n in range(1, len(ids))})
    whole = _vocabulary_columns(embedding, beginnings)
    reads = {ids: n for n, ids in enumerate([(), *beginnings])}
    places = [(k, reads[ids[:n]], token) for k, ids in enumerate(sequences) for n, token in enumerate(ids)]

    def scores(logits: Tensor, kept: None) -> Tensor:
        log_p = whole.scores(logits, kept).unflatten(0, (-1, len(reads)))  # [K, 1 + I, B, V]
        sequence, read, token = torch.tensor(places, device=log_p.device).unbind(1)
        steps: Tensor = log_p.permute(0, 2, 1, 3)[:, :, read, token]
        sums: Tensor = steps.new_zeros(*steps.shape[:2], len(sequences)).index_add(2, sequence, steps)
        return sums

    return Columns(whole.logits, scores, beginnings, whole.slot_bytes)


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
    # So a training step holds one slice of the vocabulary at a time.
    parts = [computed_again(part, hidden, start) for start in range(0, weight.shape[0], step)]
    return torch.stack(parts, dim=-1).logsumexp(-1)
