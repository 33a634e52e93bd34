"""Batches: sorted by length, within a budget of tokens and bytes, and back in input order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

#: What a pass borrows from a model (output embedding, attention, layer inputs) is lent to one pass at once.
ONE_PASS_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Budget:
    """What one pass may take.

    Args:
        tokens: tokens that are computed, padding included.
        bytes: estimated working memory.
        tree: nodes of one cue tree; the cost of its `N x N` mask grows with the square.
    """

    tokens: int
    bytes: int
    tree: int = 384

    @classmethod
    def of_device(cls, device: torch.device) -> Self:
        """Return the default: on a CPU what stays in its caches, on a GPU what fits half of its free memory."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return cls(tokens=65536, bytes=free // 2)
        return cls(tokens=1536, bytes=2 * 2**30)

    def charge(self, tokens: int, size: int) -> int:
        """Return a row's share of the budget, in tokens, given its tokens and its bytes."""
        return max(tokens, -(-size * self.tokens // self.bytes))

    def halved(self) -> Self | None:
        """Return half of the budget, or None where nothing is left to halve."""
        if self.tokens <= 1:
            return None
        return replace(self, tokens=self.tokens // 2, bytes=max(1, self.bytes // 2), tree=max(1, self.tree // 2))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is torch's way to say that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first, so that rows times longest row stays within a budget.

    A row longer than the budget makes a batch of its own. Every row comes exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding, 0 to 1, in batches of rows of these lengths."""
    read = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths) / read if read else 0.0


def restore_order(parts: Sequence[Tensor], batches: Sequence[Sequence[int]], dim: int) -> Tensor:
    """Join per-batch results along `dim` and put the rows back into input order."""
    joined = torch.cat(list(parts), dim=dim)
    order = torch.as_tensor([row for batch in batches for row in batch], device=joined.device)
    return joined.index_select(dim, order.argsort())
