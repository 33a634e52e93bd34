"""Whole-vocabulary questions to a frozen language model: which word comes next, and how likely a cue is as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from cuecraft.backbone.causal import CausalBackbone
from cuecraft.backbone.encoder import MaskedBackbone
from cuecraft.backbone.load import AnyBackbone
from cuecraft.backbone.prompt import Prompt
from cuecraft.backbone.query import VOCABULARY, Context, Query, Rows
from cuecraft.backbone.tree import tree_groups
from cuecraft.core.errors import BackboneError, PromptError
from cuecraft.task.rendering import Pieces
from cuecraft.task.token_text import special_ids

Cue = tuple[int, ...]
_BLANKS = 64  # whole inputs whose vocabularies are held at once


@torch.no_grad()
def next_word_log_probabilities(backbone: AnyBackbone, context: Context, prompt: Prompt) -> Tensor:
    """Return log-probabilities (nats) of the whole vocabulary at the answer slot `[B, V]`, float32; no gradient.

    Of a causal model the next token's, of a masked model the token's at the mask. The result itself takes `4 B V`
    bytes; give parts of a long context one after another.

    Raises:
        BackboneError: the backbone has no language head.
    """
    return _language_model(backbone).read_prompts(context, [prompt], VOCABULARY)[0]


@torch.no_grad()
def word_log_probabilities(
    backbone: AnyBackbone, context: Context, prompt: Prompt, words: Sequence[Sequence[int]]
) -> Tensor:
    """Return log-probabilities (nats) of some words at the answer slot `[B, W]`, float32; no gradient.

    Args:
        backbone: a causal or masked language model.
        context: the examples.
        prompt: what stands in the prompt slot.
        words: ids of each word; of a masked model one each, of a causal model as many as it has.

    Raises:
        BackboneError: the backbone has no language head.
        PromptError: a word is empty, has several tokens where one mask holds one, or makes an input too long.
    """
    model = _language_model(backbone)
    wanted = [tuple(word) for word in words]
    longest = max(map(len, wanted), default=0)
    if not wanted or not all(wanted) or (longest > 1 and isinstance(model, MaskedBackbone)):
        raise PromptError("a word needs one token, or on a causal model one or more; give others")
    context.renderer.check_length(context.pieces, len(prompt.vectors(model.embed)) + longest - 1)
    return model.read_prompts(context, [prompt], _likelihood_of(wanted))[0]


@torch.no_grad()
def cue_log_likelihood(backbone: AnyBackbone, cues: Sequence[Sequence[int]], context: Context | None = None) -> Tensor:
    """Return how likely each cue is as text: the mean log-probability of its tokens (nats) `[K]`, float32.

    Of a causal model it is exact; cues that begin alike share their beginnings, and all share the kept contexts. Of a
    masked model it is the pseudo-log-likelihood: each token in turn is masked and all others are seen (Salazar et al.,
    ACL 2020, arXiv 1910.14659, equation 1), the template's own mask included.

    Args:
        backbone: a causal or masked language model.
        cues: ids of each cue.
        context: examples; each cue stands in their prompt slot, and the mean is over them. What stands behind the
            slot is seen by a masked model alone. None for the cue after the tokenizer's own start tokens. Where a
            causal model has nothing before the cue at all, its first token only serves as context of the second.

    Raises:
        BackboneError: the backbone has no language head.
        PromptError: a cue is empty, has an id outside of the vocabulary or too many tokens, or has one token and a
            causal model has nothing before it.
    """
    model = _language_model(backbone)
    wanted = [tuple(cue) for cue in cues]
    distinct = sorted(set(wanted))
    _check(model, distinct, context)
    if isinstance(model, MaskedBackbone):
        found = _pseudo_log_likelihood(model, distinct, context)
    else:
        found = _log_likelihood(model, distinct, context)
    places = {cue: n for n, cue in enumerate(distinct)}
    return found[[places[cue] for cue in wanted]]


def _likelihood_of(sequences: Sequence[Cue]) -> Query:
    return Query("options", tuple((ids,) for ids in sequences), norm="vocabulary")


def _language_model(backbone: AnyBackbone) -> CausalBackbone | MaskedBackbone:
    if isinstance(backbone, CausalBackbone | MaskedBackbone):
        return backbone
    raise BackboneError(
        f"{backbone.name} has no language head and gives words no probability; use a causal or masked language model"
    )


def _check(backbone: CausalBackbone | MaskedBackbone, cues: Sequence[Cue], context: Context | None) -> None:
    if not cues or not all(cues):
        raise PromptError("an empty cue has no likelihood; give cues of one token or more")
    if not all(0 <= token < backbone.vocab_size for cue in cues for token in cue):
        raise PromptError(f"a cue's token is outside 0..{backbone.vocab_size - 1} of {backbone.name}")
    longest = max(map(len, cues))
    if context is not None:
        if not len(context):
            raise BackboneError("there is nothing to score; give at least one example")
        context.renderer.check_length(context.pieces, longest)
        return
    special = sum(map(len, special_ids(backbone.tokenizer)))
    if backbone.max_positions is not None and longest + special > backbone.max_positions:
        raise PromptError(f"a cue of {longest} tokens is longer than {backbone.name} has positions; shorten it")


def _log_likelihood(backbone: CausalBackbone, cues: Sequence[Cue], context: Context | None) -> Tensor:
    """Return the mean log-probabilities `[K]` of sorted cues after each text, or after the start tokens."""
    if context is None:
        start, _ = special_ids(backbone.tokenizer)
        states: dict[Cue, Tensor | None] = {start: None}
        counts = Counter([start])
    else:
        # Behind a template's own words alone, or behind equal texts, a cue is equally likely.
        befores = [piece.before for piece in context.pieces]
        states = dict(zip(befores, context.states, strict=True))
        counts = Counter(befores)
    bare = counts.pop((), 0)
    total = torch.zeros(len(cues), device=backbone.device)
    if bare:
        total += bare * _after_first_token(backbone, cues) / (_lengths(backbone, cues) - 1)
    if counts:
        texts = Rows([Pieces(before, ()) for before in counts], [states[before] for before in counts])
        weights = torch.tensor(list(counts.values()), device=backbone.device)
        total += (weights[:, None] * _read_cues(backbone, texts, cues)).sum(0) / _lengths(backbone, cues)
    return total / (bare + counts.total())


def _read_cues(backbone: CausalBackbone, texts: Rows, cues: Sequence[Cue]) -> Tensor:
    """Return log-probabilities (nats) `[B, K]` of cues, sorted, right after texts without ids after the prompt."""
    nodes = backbone.tree_nodes(max(len(piece.before) for piece in texts.pieces))
    groups = tree_groups(cues, nodes)
    return torch.cat([backbone.read(texts, backbone.no_prompt(), _likelihood_of(own))[0] for own in groups], dim=1)


def _lengths(backbone: CausalBackbone, cues: Sequence[Cue]) -> Tensor:
    return torch.tensor([len(cue) for cue in cues], device=backbone.device)


def _after_first_token(backbone: CausalBackbone, cues: Sequence[Cue]) -> Tensor:
    """Return the log-probabilities `[K]` of sorted cues from their second token on."""
    if any(len(cue) < 2 for cue in cues):
        raise PromptError(
            "a cue of one token has no likelihood where nothing stands before it; put it behind a text, or give more"
        )
    parts = []
    for first, group in groupby(cues, key=lambda cue: cue[0]):
        text = Rows([Pieces((first,), ())], [None])
        parts.append(_read_cues(backbone, text, [cue[1:] for cue in group])[0])
    return torch.cat(parts)


def _pseudo_log_likelihood(backbone: MaskedBackbone, cues: Sequence[Cue], context: Context | None) -> Tensor:
    """Return the mean pseudo-log-likelihoods `[K]` of sorted cues in each text, or between the special tokens."""
    pieces = [Pieces(*special_ids(backbone.tokenizer))] if context is None else context.pieces
    counts = Counter((piece.before, piece.after) for piece in pieces)
    mask = backbone.tokenizer.mask_token_id
    blanks, tokens, weights = [], [], []
    for cue in cues:
        for n, token in enumerate(cue):
            masked = (*cue[:n], mask, *cue[n + 1 :])
            for (before, after), count in counts.items():
                blanks.append(Pieces((*before, *masked), after, len(before) + n))
                tokens.append(token)
                weights.append(count / len(pieces) / len(cue))
    parts = []
    for start in range(0, len(blanks), _BLANKS):
        own, wanted = blanks[start : start + _BLANKS], tokens[start : start + _BLANKS]
        words = backbone.read(Rows(own, [None] * len(own)), backbone.no_prompt(), VOCABULARY)[0]
        parts.append(words[torch.arange(len(own)), wanted])
    found = torch.cat(parts)
    shares = (torch.tensor(weights, device=found.device) * found).split([len(cue) * len(counts) for cue in cues])
    return torch.stack([part.sum() for part in shares])
