"""What one pass may take, which errors mean that memory ran out, and results of batches back in input order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.task.batches import TokenBudget


@dataclass(frozen=True, kw_only=True)
class Budget(TokenBudget):
    """What one pass over a backbone may take.

    Args:
        bytes: estimated working memory.
        tree: nodes of one cue tree, of one cue at least; the cost of its `N x N` mask grows with the square.
        rows: examples of one backward pass.
        shared_rows: examples of one backward pass that several trainings share, over texts that were read before: a
            training alone takes few at a time, which costs a CPU half as much again.
    """

    bytes: int
    tree: int = 384
    rows: int = 32
    shared_rows: int = 64

    @classmethod
    def of_device(cls, device: torch.device) -> Self:
        """Return the default: on a CPU what stays in its caches, on a GPU what fits a quarter of its memory.

        Of its whole memory and not of what is free, so that the same machine makes the same batches.
        """
        if device.type == "cuda":
            # What a pass costs there is an estimate: no GPU was measured.
            return cls(tokens=65536, pass_tokens=4096, bytes=memory_of(device) // 4)
        return cls(bytes=2 * 2**30)

    def charge(self, tokens: int, size: int) -> int:
        """Return a row's share of the budget, in tokens, given its tokens and its bytes."""
        return max(tokens, -(-size * self.tokens // self.bytes))

    def halved(self) -> Self | None:
        """Return half of the budget, or None where nothing is left to halve."""
        if max(self.tokens, self.rows, self.shared_rows) <= 1:
            return None
        halves = {name: max(1, getattr(self, name) // 2) for name in ("tokens", "bytes", "tree", "rows", "shared_rows")}
        return replace(self, **halves)


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a device has, used or free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is torch's way to say that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator has no error class of its own; its words differ between platforms.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def same_width(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return parts `[..., X]` as wide as the widest of them, with minus infinity behind their own numbers."""
    width = max((part.shape[-1] for part in parts), default=0)
    return [functional.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for part in parts]


def restore_order(parts: Sequence[Tensor], batches: Sequence[Sequence[int]], dim: int) -> Tensor:
    """Join per-batch results along `dim` and put the rows back into input order."""
    joined = torch.cat(list(parts), dim=dim)
    order = torch.as_tensor([row for batch in batches for row in batch], device=joined.device)
    return joined.index_select(dim, order.argsort())
