"""First-order scores of token swaps (HotFlip, Ebrahimi et al., ACL 2018; AutoPrompt, Shin et al., EMNLP 2020)."""

from __future__ import annotations

import torch
from torch import Tensor


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
