"""Which swap of a token is best: first-order scores, then all examples for every candidate, or successive halving.

First-order scores: HotFlip (Ebrahimi et al., ACL 2018), AutoPrompt (Shin et al., EMNLP 2020). Successive halving
(Jamieson & Talwalkar, AISTATS 2016, arXiv 1502.07943) scores all candidates on a few examples, the better half on as
many again and again more, and the last ones on all. Candidates are compared on the same examples, so what differs
between two of them is not the luck of a draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact.predictor import Candidate
from cuecraft.backbone import AnyBackbone, Swap
from cuecraft.methods.problem import Labelled, Score

_FIRST = 8  # examples of the first round: fewer tell too little to drop half of the candidates


def halving_rounds(labels: Sequence[int], generator: np.random.Generator) -> list[list[int]]:
    """Return the examples that each round adds: 8, then as many again as were seen, until all were.

    Classes take turns, in random order within each, so that no round favours a prompt that only likes one class.
    """
    order = generator.permutation(len(labels)).tolist()
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in order:
        turn = turns.get(labels[row], 0)
        turns[labels[row]] = turn + 1
        ranked.append((turn, len(ranked), row))
    rows = [row for _, _, row in sorted(ranked)]
    rounds: list[list[int]] = []
    seen = 0
    while seen < len(rows):
        stop = seen + max(_FIRST, seen)
        # A remainder too small to double once more joins this round.
        stop = stop if len(rows) - stop >= stop else len(rows)
        rounds.append(rows[seen:stop])
        seen = stop
    return rounds


@torch.no_grad()
def best_swap(
    backbone: AnyBackbone,
    current: Candidate,
    data: Labelled,
    swaps: Sequence[Swap],
    rounds: Sequence[list[int]],
    penalties: Mapping[Swap, float] = MappingProxyType({}),
) -> tuple[Swap, Score]:
    """Return the best of some swaps of a prompt, with its score on all examples.

    Args:
        backbone: the frozen model.
        current: the prompt, and the calibration that all its swaps share.
        data: the examples.
        swaps: candidates (position, token id).
        rounds: the rows that each round adds, all rows together; the worse half of the candidates is dropped between
            two rounds. One round of all rows scores every candidate on every example.
        penalties: what is added to each candidate's mean loss before they are compared, where there is something.
    """
    alive = sorted(swaps)
    seen = [row for rows in rounds for row in rows]
    labels, weights = data.labels[seen], data.weights_of(seen)
    logits = torch.empty(len(alive), 0, 0)
    for number, rows in enumerate(rounds):
        found = backbone.score_swaps(data.context.select(rows), current.prompt, alive)
        found = current.calibration.apply(found)
        logits = torch.cat([logits, found], dim=1) if logits.numel() else found
        losses = _losses(logits, labels, weights)
        if penalties:
            losses = losses + torch.tensor(
                [penalties[swap] for swap in alive], dtype=losses.dtype, device=losses.device
            )
        keep = len(alive) if number == len(rounds) - 1 else -(-len(alive) // 2)
        # A stable sort: of equals the first in order of position and token stays.
        best = sorted(losses.sort(stable=True).indices[:keep].tolist())
        alive, logits, losses = [alive[n] for n in best], logits[best], losses[best]
    first = int(losses.argmin())
    return alive[first], Score.of(logits[first], labels, weights)


def _losses(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return each candidate's mean loss `[K]` of logits `[K, b, C]` over the first b labels, by their weights."""
    count = logits.shape[1]
    flat = functional.cross_entropy(logits.double().flatten(0, 1), labels[:count].repeat(len(logits)), reduction="none")
    if weights is None:
        return flat.view(-1, count).mean(1)
    shares = weights[:count].to(flat.dtype)
    return flat.view(-1, count) @ (shares / shares.sum())


def first_order_change(gradient: Tensor, current: Tensor, embeddings: Tensor) -> Tensor:
    """Return the change of the loss `[S, V]` that a linear model predicts for each swap: ``(e_v - e_s) . g_s``.

    Args:
        gradient: `[S, d]` of the loss at the prompt's vectors.
        current: `[S, d]` the prompt's vectors.
        embeddings: `[V, d]` of the vocabulary.
    """
    return gradient @ embeddings.to(gradient.dtype).T - (gradient * current).sum(-1, keepdim=True)


def best_tokens(change: Tensor, allowed: Tensor, count: int) -> list[int]:
    """Return the `count` allowed tokens of least predicted change `[V]`, best first."""
    masked = change.masked_fill(~allowed.to(change.device), torch.inf)
    count = min(count, int(allowed.sum()))
    ids: list[int] = masked.topk(count, largest=False).indices.tolist()
    return ids


def best_swaps(change: Tensor, allowed: Tensor, count: int) -> list[tuple[int, int]]:
    """Return the `count` allowed swaps (position, token) of least predicted change `[S, V]`, best first."""
    flat = best_tokens(change.flatten(), allowed.expand_as(change).flatten(), count)
    return [divmod(n, change.shape[1]) for n in flat]
