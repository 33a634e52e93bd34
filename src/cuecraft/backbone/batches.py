"""Batches: sorted by length, within a budget of tokens. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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


def padding_share(*parts: tuple[Sequence[int], Sequence[Sequence[int]]]) -> float:
    """Return the share of padding, 0 to 1, over parts of lengths of rows and the batches that they are read in."""
    real = sum(sum(lengths) for lengths, _ in parts)
    read = sum(len(batch) * max(lengths[row] for row in batch) for lengths, batches in parts for batch in batches)
    return 1 - real / read if read else 0.0
