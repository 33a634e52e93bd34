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

from cuecraft.backbone import AnyBackbone, Swap
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.objectives import Score, Scores
from cuecraft.methods.problem import Labelled

_FIRST = 8  # examples of the first round: fewer tell too little to drop half of the candidates


def halving_rounds(strata: Sequence[int], generator: np.random.Generator) -> list[list[int]]:
    """Return the examples that each round adds: 8, then as many again as were seen, until all were.

    Strata take turns, in random order within each, so that no round favours a prompt that only likes one class.
    """
    order = generator.permutation(len(strata)).tolist()
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in order:
        turn = turns.get(strata[row], 0)
        turns[strata[row]] = turn + 1
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
    found: Scores | None = None
    for number, rows in enumerate(rounds):
        part = data.select(rows)
        values = current.calibration.apply(backbone.score_swaps(part.context, current.prompt, alive))
        found = part.scores(values) if found is None else found.joined(part.scores(values))
        losses = found.mean_losses
        if penalties:
            losses = losses + torch.tensor(
                [penalties[swap] for swap in alive], dtype=losses.dtype, device=losses.device
            )
        keep = len(alive) if number == len(rounds) - 1 else -(-len(alive) // 2)
        # A stable sort: of equals the first in order of position and token stays.
        best = sorted(losses.sort(stable=True).indices[:keep].tolist())
        alive, found, losses = [alive[n] for n in best], found.of(best), losses[best]
    assert found is not None
    first = int(losses.argmin())
    return alive[first], found.of(first).mean


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
