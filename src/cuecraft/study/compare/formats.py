"""Numbers of a comparison: accuracy and macro-F1 with bootstrap intervals, and how all figures are written.

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
from cuecraft.study.compare.schema import Comparison, Difference, Estimate, RepeatEntry, Row

NONE = "-"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 2000
_BLOCK = 2_000_000  # numbers of one block of draws


def estimate(found: Estimate | None) -> str:
    """Return a mean and, with several seeds, its standard deviation."""
    if found is None:
        return NONE
    return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}")


def interval(found: Estimate | Difference | None) -> str:
    """Return the ends of an interval; those of a difference with their signs."""
    if found is None:
        return NONE
    sign = "+" if isinstance(found, Difference) else ""
    return f"{found.low:{sign}.3f} to {found.high:{sign}.3f}"


def difference(found: Difference | None) -> str:
    """Return a difference with its p-value."""
    return NONE if found is None else f"{found.mean:+.3f} ({p_value(found.p)})"


def p_value(p: float) -> str:
    """Return a p-value; below a thousandth the bootstrap has too few draws to tell more."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    return f"{value / 60:.1f} min"


def milliseconds(value: float | None) -> str:
    """Return a latency."""
    return NONE if value is None else f"{value:.1f} ms"


def size(value: int | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return NONE
    shown = float(value)
    for unit in ("B", "KiB", "MiB"):
        if abs(shown) < 1024:
            return f"{shown:.0f} B" if unit == "B" else f"{shown:.1f} {unit}"
        shown /= 1024
    return f"{shown:.2f} GiB"


def count(value: int | None) -> str:
    """Return a whole number in groups of three."""
    return NONE if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Return how many a second."""
    return NONE if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def repeat(found: RepeatEntry | None) -> str:
    """Return whether a second run did the same, and in how many steps that was looked at."""
    return NONE if found is None else f"{'yes' if found.same else 'no'} ({found.steps})"


@dataclass(frozen=True)
class TextTable:
    """A table of the terminal; the first column names the method."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def text_tables(document: Comparison) -> list[TextTable]:
    """Return two tables: what the methods reach, and what they take. Methods that were refused are left out."""
    rows = [row for row in document.rows if not row.refused]
    reached = ("method", "acc.", "sd", "95%", "F1", "vs untuned", "p", "vs best", "p")
    taken = ("method", "train s", "texts/s", "p50 ms", "p95 ms", "MiB", "trained", "stored", "again")
    return [
        TextTable(
            reached, [(row.name, *_mean(row), *_signed(row.versus_untuned), *_signed(row.versus_best)) for row in rows]
        ),
        TextTable(taken, [_taken(row) for row in rows]),
    ]


def _mean(row: Row) -> tuple[str, ...]:
    accuracy, macro_f1 = row.accuracy, row.macro_f1
    if accuracy is None or macro_f1 is None:
        return (NONE,) * 4
    sd = NONE if accuracy.sd is None else f"{accuracy.sd:.3f}"
    return f"{accuracy.mean:.3f}", sd, f"{accuracy.low:.3f}-{accuracy.high:.3f}", f"{macro_f1.mean:.3f}"


def _signed(found: Difference | None) -> tuple[str, str]:
    return (NONE, NONE) if found is None else (f"{found.mean:+.3f}", f"{found.p:.3f}")


def _taken(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        NONE if row.train_seconds is None else f"{row.train_seconds:.1f}",
        rate(row.examples_per_second),
        milliseconds(row.latency_p50_ms).removesuffix(" ms"),
        milliseconds(row.latency_p95_ms).removesuffix(" ms"),
        NONE if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.0f}",
        _short(row.tuned_parameters),
        size(row.stored_bytes),
        repeat(row.reproducible),
    )


def _short(value: int | None) -> str:
    """Return a count in few characters: all digits below a million."""
    return f"{value / 1e6:.1f}M" if value is not None and value >= 1e6 else count(value)


def wilson_interval(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% Wilson score percentile_interval of an accuracy measured on `count` examples."""
    middle = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def macro_f1(truth: Ints, predicted: Ints, classes: int) -> float:
    """Return the mean over all classes of F1 (scikit-learn); a class that is neither there nor predicted has 0.

    Args:
        truth: `[N]` class numbers.
        predicted: `[N]` class numbers.
        classes: how many there are, C.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, labels=list(range(classes)), average="macro", zero_division=0))


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
