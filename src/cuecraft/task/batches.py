"""Batches: sorted by length, within a budget of tokens. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class TokenBudget:
    """What one pass may take.

    Args:
        tokens: tokens that are computed, padding included; by default what stays in a CPU's caches.
        pass_tokens: tokens that take about as long as one pass more does. So much padding is not worth a pass.
    """

    tokens: int = 1536
    pass_tokens: int = 64


def token_batches(
    lengths: Sequence[int], budget: TokenBudget, shares: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first, so that rows times longest row stays within a budget.

    A batch ends sooner where its rows become so much shorter that their padding would cost more than one pass more.
    A row longer than the budget makes a batch of its own. Every row comes exactly once.

    Args:
        lengths: tokens of each row that are computed.
        budget: of a batch.
        shares: what each row takes of the budget's tokens, where that is more than its length.
    """
    shares = lengths if shares is None else shares
    order = sorted(range(len(lengths)), key=lambda row: (-shares[row], -lengths[row], row))
    start = 0
    while start < len(order):
        size = max(1, budget.tokens // max(1, shares[order[start]]))
        batch = order[start : start + size]
        batch = batch[: _shorter([lengths[row] for row in batch], budget.pass_tokens)]
        yield batch
        start += len(batch)


def _shorter(lengths: Sequence[int], pass_tokens: int) -> int:
    """Return after how many rows a batch ends: where that saves the most padding, if more than a pass costs.

    One place is looked for only: the batches that follow find theirs.
    """
    longest = list(accumulate(reversed(lengths), max))[::-1]  # of each row and those behind it
    saved = [(len(lengths) - n) * (longest[0] - own) for n, own in enumerate(longest)]
    most = max(saved)
    return saved.index(most) if most > pass_tokens else len(lengths)


def padding_share(*parts: tuple[Sequence[int], Sequence[Sequence[int]]]) -> float:
    """Return the share of padding, 0 to 1, over parts of lengths of rows and the batches that they are read in."""
    real = sum(sum(lengths) for lengths, _ in parts)
    read = sum(len(batch) * max(lengths[row] for row in batch) for lengths, batches in parts for batch in batches)
    return 1 - real / read if read else 0.0
