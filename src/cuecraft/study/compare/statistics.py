"""Scores of rows and macro-F1 over seeds, with bootstrap intervals. Rows are the same for every method and seed.

The bootstrap has two levels: seeds are drawn with replacement, and rows are drawn with replacement. One draw of seeds
and rows serves every method, so that differences between methods are paired in both. With few seeds the spread between
seeds is known roughly, and so are the intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cuecraft.core.seeding import numpy_generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 2000
_BLOCK = 2_000_000  # numbers of one block of draws


def wilson_interval(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% Wilson score interval of an accuracy measured on `count` examples."""
    middle = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Resamples:
    """Draws of seeds and rows: how often each was drawn. Counts, so that sums of hits are exact and ties are ties.

    Args:
        seeds: `[R, S]`, S in each line.
        rows: `[R, N]`, N in each line.
    """

    seeds: Floats
    rows: Floats

    @classmethod
    def draw(cls, seeds: int, rows: int, count: int = RESAMPLES) -> Resamples:
        """Draw `count` resamples of `seeds` seeds and `rows` rows, always the same for the same sizes."""
        random = numpy_generator(0, "compare/bootstrap")
        return cls(_counts(random, count, seeds), _counts(random, count, rows))

    def mean(self, values: Floats) -> Floats:
        """Return the means `[R]` of values `[S, N]` over the drawn seeds and rows."""
        return cast(Floats, (self.rows @ values.T * self.seeds).sum(axis=1) / values.size)

    def macro_f1(self, truth: Ints, predicted: Ints, classes: int) -> Floats:
        """Return the means `[R]` over the drawn seeds of macro-F1, of truth `[N]` and predictions `[S, N]`."""
        total = np.zeros_like(self.seeds)
        for number in range(classes):
            is_true, is_said = truth == number, predicted == number
            hits = self.rows @ (is_said & is_true).T.astype(np.float64)
            both = self.rows @ is_said.T.astype(np.float64) + (self.rows @ is_true.astype(np.float64))[:, None]
            total += np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
        return cast(Floats, (self.seeds * total).sum(axis=1) / (classes * len(predicted)))


def _counts(random: np.random.Generator, count: int, size: int) -> Floats:
    """Return how often each of `size` things is drawn in `size` draws: `[count, size]`."""
    parts = []
    for start in range(0, count, max(1, _BLOCK // size)):
        block = min(count - start, max(1, _BLOCK // size))
        drawn = random.integers(size, size=(block, size)) + size * np.arange(block)[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=block * size).reshape(block, size))
    return np.concatenate(parts).astype(np.float64)


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """Return the middle 95% of draws `[R]`."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def two_sided_p(draws: Floats) -> float:
    """Return the two-sided bootstrap p-value of a difference, from its draws `[R]`; never below 2 / (R + 1)."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def spread(values: Floats) -> float | None:
    """Return the standard deviation of values `[S]` (denominator S - 1), or None of one value."""
    return float(values.std(ddof=1)) if len(values) > 1 else None
