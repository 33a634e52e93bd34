"""Reading at answer slots: scores of options over their words' columns only, features, or the whole vocabulary.

A pass gives the model's output embedding another task (`Pass.output`): to look at the answer slots alone and to
multiply by the rows that are asked for alone. So no `[B, L, V]` tensor is ever made, and whatever an architecture does
before its output embedding (transform, norm) or after it (soft-capping, scaling) stays the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone.hooks import computed_again
from cuecraft.backbone.prompt import ClassHead, FeatureScale
from cuecraft.backbone.query import Query, Targets
from cuecraft.backbone.tree import children_of
from cuecraft.core.errors import LabelWordError
from cuecraft.task.alignment import CUT, UNREAD
from cuecraft.task.fitting import LabelIds, beginnings_of

_SLICE_NUMBERS = 2**24  # logits of one slice of the vocabulary
_OPTIONS_KEPT = 2048  # options of texts of which it is kept how they are read: a server meets others for ever
_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, eq=False)
class OwnOptions:
    """Options that rows bring, and how they are scored.

    Args:
        embedding: the output embedding.
        options: `[B]` of each row, option -> word -> token ids.
        norm: as in `Query`.
    """

    embedding: Any
    options: tuple[LabelIds, ...]
    norm: str


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
        own: what it is made of, where rows have options of their own; such columns of several rows are read as one.
        of_rows: given the numbers of a pass's texts, returns the columns that read these; None where all texts have the
            same.
    """

    logits: Callable[[Tensor], tuple[Tensor, Any]]
    scores: Callable[[Tensor, Any], Tensor]
    beginnings: Sequence[tuple[int, ...]] = ()
    slot_bytes: int = 0
    own: OwnOptions | None = None
    of_rows: Callable[[Sequence[int]], Columns] | None = None

    def at(self, rows: Sequence[int]) -> Columns:
        """Return the columns of a pass over some of the texts, by their numbers."""
        return self if self.of_rows is None else self.of_rows(rows)


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
    if query.targets is not None:
        return _target_columns(embedding, query.targets)
    if query.norm == "vocabulary":
        return _sequence_columns(embedding, [words[0] for words in query.options])
    if query.own is not None:
        found = own_columns(OwnOptions(embedding, query.own, query.norm))
    else:
        found = option_columns(embedding, query.options, "siblings" if query.norm == "siblings" else "row")
    if found.beginnings and query.norm != "siblings" and any(getattr(model.config, name, None) for name in _RESCALING):
        raise LabelWordError("this backbone rescales its logits; give label words of one token each")
    return levelled(found, query.level)


def levelled(columns: Columns, level: Literal["any", "mean"]) -> Columns:
    """Return columns whose scores `[K, B, O]` are relative to their mean over the options, where `level` says so."""
    if level == "any":
        return columns

    def scores(logits: Tensor, kept: Any) -> Tensor:
        found = columns.scores(logits, kept)
        return found - found.mean(-1, keepdim=True)

    return replace(columns, scores=scores)


def class_scores(features: Tensor, head: ClassHead) -> Tensor:
    """Return class scores `[..., C]` of features `[..., d]`."""
    weight, bias = (part.to(features.device) for part in (head.weight, head.bias))
    return functional.linear(scaled_features(features.to(weight.dtype), head.scale), weight, bias)


def of_words(features: Tensor, words: Tensor) -> Tensor:
    """Return features read at slots `[R, b, d]` as those of the words of each text `[b, R, d]`.

    Those of a word that was not read are minus infinity, and of one that was cut off, infinity.

    Args:
        features: of each slot.
        words: `[b, R]` the slot of each word, or `UNREAD` or `CUT`.
    """
    table, words = features.transpose(0, 1), words[..., None]
    return table.masked_fill(words == UNREAD, -torch.inf).masked_fill(words == CUT, torch.inf)


def in_context(features: Tensor) -> Tensor:
    """Return features `[..., R, 3 d]` of each word, the word before it and the word behind, of those `[..., R, d]`.

    Where there is no such word, or it was not read or cut off, they are zeros. Words themselves that were not read or
    cut off stay marked, as `of_words` marks them.
    """
    known = features.masked_fill(features[..., :1].isinf(), 0.0)
    none = torch.zeros_like(known[..., :1, :])
    before = torch.cat([none, known[..., :-1, :]], dim=-2)
    behind = torch.cat([known[..., 1:, :], none], dim=-2)
    return torch.cat([features, before, behind], dim=-1)


def mean_of_layers(states: Sequence[Tensor]) -> Tensor:
    """Return the mean `[..., d]` of hidden states `[..., d]` of several layers, each at a root mean square of 1.

    Layers below the last know more of a word and its neighbours (Tenney et al., ACL 2019, arXiv 1905.05950).
    """
    parts = [_single(own) for own in states]
    level = [part.square().mean(-1, keepdim=True).clamp(min=torch.finfo(part.dtype).tiny).rsqrt() for part in parts]
    return torch.stack([part * own for part, own in zip(parts, level, strict=True)]).mean(0)


def word_scores(features: Tensor, head: ClassHead) -> Tensor:
    """Return class scores `[..., R * C]` of features of words `[..., R, d]`, as `of_words` gives them.

    Those of a word that was not read are minus infinity; of one that was cut off too, but for the first class, which
    stands for nothing.
    """
    is_cut, unread = features[..., :1].isposinf(), features[..., :1].isneginf()
    found = class_scores(features.masked_fill(is_cut | unread, 0.0), head)
    nothing = found.new_full(found.shape[-1:], -torch.inf)
    nothing[0] = 0.0
    marked = torch.where(is_cut.to(found.device), nothing, found.masked_fill(unread.to(found.device), -torch.inf))
    return marked.flatten(-2)


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


def own_columns(own: OwnOptions) -> Columns:
    """Return columns that give the scores `[K, b, O]` of options that rows bring, minus infinity behind a row's own.

    Scores are as those of `option_columns`; or, by `norm`, the mean log-probability (nats) of a word's tokens. All
    slots of all rows are read together: each word's tokens by a product each, and one normaliser for each slot.
    """
    rows = [_steps(options) for options in own.options]
    device, is_mean = own.embedding.weight.device, own.norm == "token"
    reads = 1 + max(len(beginnings) for beginnings, _, _ in rows)
    # [b, M] of each token: the number of its word, the last one for padding; the slot that is read, and the id.
    most = max(len(words) for _, _, words in rows)
    owners, slots, tokens = _table([steps for _, steps, _ in rows], (most, 0, 0), device)
    # [b, W] of each word: its option, the last one for padding, and its length.
    options = max(map(len, own.options))
    of_options, lengths = _table([words for _, _, words in rows], (options, 1), device)
    # Slots that need a normaliser: at the answer slot it changes all options of a row alike, unless lengths differ.
    pairs = [
        (n, read)
        for n, (beginnings, _, _) in enumerate(rows)
        for read in range(0 if is_mean and beginnings else 1, 1 + len(beginnings))
    ]
    at_rows, at_slots = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).unbind(1)

    def logits(hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits `[b, K, M]` of the words' tokens, and of each slot its normaliser `[b, K, reads]`."""
        table = hidden.unflatten(1, (-1, reads))  # [b, K, reads, d]
        weight, bias = own.embedding.weight, own.embedding.bias
        norm = torch.zeros(table.shape[:3], dtype=torch.promote_types(hidden.dtype, torch.float32), device=device)
        if pairs:
            found = _log_normalisers(table[at_rows, :, at_slots], weight, bias)  # [slots, K]
            norm = norm.index_put(
                (at_rows[:, None], torch.arange(norm.shape[1], device=device), at_slots[:, None]), found
            )
        states = table[torch.arange(len(table), device=device)[:, None], :, slots]  # [b, M, K, d]
        found = torch.einsum("bmkd,bmd->bkm", states, weight[tokens])
        return (found if bias is None else found + bias[tokens][:, None]), norm

    def scores(logits: Tensor, norm: Tensor) -> Tensor:
        shape = logits.shape[:2]
        steps = _single(logits) - norm.gather(2, slots[:, None].expand(*shape, -1))
        of_words = steps.new_zeros(*shape, most + 1).scatter_add(2, owners[:, None].expand(*shape, -1), steps)
        of_words = of_words[..., :most]
        if is_mean:
            of_words = of_words / lengths[:, None]
        return _of_options(of_words, of_options, options).transpose(0, 1)

    return Columns(logits, scores, max((part[0] for part in rows), key=len), own=own)


def _of_options(of_words: Tensor, of_options: Tensor, count: int) -> Tensor:
    """Return scores `[b, K, O]` of options, given those of their words `[b, K, W]` and each word's option `[b, W]`."""
    places = torch.arange(count, device=of_options.device)
    is_own = (of_options[:, None] == places[:, None])[:, None]  # [b, 1, O, W]
    is_there = is_own.any(-1)
    # The options that are not there have no gradient, nor a logarithm of nothing.
    spread = of_words[:, :, None].masked_fill(~is_own & is_there[..., None], -torch.inf)
    return spread.logsumexp(-1).masked_fill(~is_there, -torch.inf)


def _table(
    rows: Sequence[Sequence[tuple[int, ...]]], padding: tuple[int, ...], device: torch.device
) -> Sequence[Tensor]:
    """Return the parts `[b, N]` of each row's tuples, with those of `padding` behind a row's own."""
    width = max(map(len, rows))
    padded = [[*row, *[padding] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).unbind(2)


def row_columns(rows: Sequence[Columns]) -> Columns:
    """Return columns of one prompt a row, each row's own `[1, b, Y]`, zeros behind what a row reads.

    Its beginnings are those of its rows: each row's slots are its own, as many as any row has.
    """
    if all(own is rows[0] for own in rows):
        return rows[0]
    alike: dict[Hashable, list[int]] = {}
    for row, own in enumerate(rows):
        key = id(own) if own.own is None else (id(own.own.embedding), own.own.norm)
        alike.setdefault(key, []).append(row)
    parts = [(_as_one([rows[number] for number in numbers]), numbers) for numbers in alike.values()]

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


def _as_one(rows: Sequence[Columns]) -> Columns:
    """Return columns of rows that have the same ones, or options of their own over one output embedding."""
    parts = [own.own for own in rows]
    known = [own for own in parts if own is not None]
    if len(known) < 2:
        return rows[0]
    options = tuple(options for own in known for options in own.options)
    return own_columns(OwnOptions(known[0].embedding, options, known[0].norm))


@lru_cache(maxsize=_OPTIONS_KEPT)
def _steps(options: LabelIds) -> tuple[list[tuple[int, ...]], list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Return how options of one row are read.

    The beginnings that are grown after the answer slot, sorted; of each token of each word the word's number, the slot
    that says how likely it is (0 for the answer slot) and the token; and of each word its option and its length.
    """
    words = [(number, ids) for number, own in enumerate(options) for ids in own]
    beginnings = beginnings_of(options)
    reads = {ids: number for number, ids in enumerate([(), *beginnings])}
    steps = [(word, reads[ids[:n]], token) for word, (_, ids) in enumerate(words) for n, token in enumerate(ids)]
    return beginnings, steps, [(number, len(ids)) for number, ids in words]


def _vocabulary_columns(embedding: Any, beginnings: Sequence[tuple[int, ...]] = ()) -> Columns:
    """Return columns that give the log-probabilities of the whole vocabulary `[K * (1 + beginnings), B, V]`."""
    return Columns(
        lambda hidden: (functional.linear(hidden, embedding.weight, embedding.bias), None),
        lambda logits, kept: _single(logits).log_softmax(-1).transpose(0, 1),
        beginnings,
        # The logits, a float32 copy and what the softmax makes of it.
        embedding.weight.shape[0] * (embedding.weight.element_size() + 8),
    )


def _target_columns(embedding: Any, targets: Targets) -> Columns:
    """Return columns that give the log-probabilities `[K, B, M]` of each text's own tokens, over the whole vocabulary.

    Where others are looked at, the likeliest of them that is none of the text's own stands behind these.
    """
    whole = _vocabulary_columns(embedding)

    def of_rows(rows: Sequence[int]) -> Columns:
        def scores(logits: Tensor, kept: None) -> Tensor:
            table = _single(logits)  # [b, K, V]
            own = targets.tokens.to(table.device)[list(rows)][:, None].expand(-1, table.shape[1], -1)
            found = [table.gather(2, own)]
            if targets.others is not None:
                is_out = (~targets.others).to(table.device)[None, None].expand_as(table).scatter(2, own, value=True)
                found.append(table.detach().masked_fill(is_out, -torch.inf).amax(2, keepdim=True))
            return (torch.cat(found, 2) - table.logsumexp(2, keepdim=True)).transpose(0, 1)

        return Columns(whole.logits, scores)

    return replace(of_rows(()), slot_bytes=whole.slot_bytes, of_rows=of_rows)


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
