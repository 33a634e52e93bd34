"""How often answers that were not computed agree with the backbone's own, as a random sample of rows says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LATELY = 200  # rows of a sample that show whether a student drifts
_CHANCE = 0.001  # how likely so many disagreements may be where the student keeps its word


@dataclass(frozen=True)
class Sampled:
    """Rows that were asked about again, and how many of them agreed."""

    rows: int = 0
    agreed: int = 0

    def __add__(self, other: Sampled) -> Sampled:
        return Sampled(self.rows + other.rows, self.agreed + other.agreed)

    def document(self) -> dict[str, Any]:
        """Return the share that agrees with its interval of 95%, JSON-ready; None for the share of nothing."""
        low, high = interval(self.agreed, self.rows)
        share = self.agreed / self.rows if self.rows else None
        return {"rows": self.rows, "agreed": self.agreed, "share": share, "interval": [low, high]}


def lower_bound(agreed: int, rows: int, chance: float = 0.05) -> float:
    """Return the share that is at least true but for a chance (Clopper and Pearson, 1934); 0 for no rows."""
    if not agreed:  # as where nothing was audited; SciPy is not waited for then, nor needed
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(chance, agreed, rows - agreed + 1))


def interval(agreed: int, rows: int) -> tuple[float, float]:
    """Return the interval of 95% of a share (Clopper and Pearson, 1934)."""
    return lower_bound(agreed, rows, 0.025), 1.0 - lower_bound(rows - agreed, rows, 0.025)


def needed(share: float, misses: int) -> int:
    """Return the fewest rows of which so many may disagree where the share is at least this, but for a chance of 5%."""
    rows = misses + 1
    while lower_bound(rows - misses, rows) < share:
        rows += 1
    return rows


class Drift:
    """Watches whether a student keeps its word.

    Args:
        share: of answers that it promised to agree in.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._lately: deque[bool] = deque(maxlen=_LATELY)
        self.is_drifting = False

    def note(self, agreed: Sequence[bool]) -> bool:
        """Take the next rows of the sample; return whether the student has just been found to drift.

        Whether so many of the last 200 could disagree by chance is asked once for each shard, so the chance is small.
        """
        self._lately.extend(agreed)
        if self.is_drifting or not agreed:
            return False
        rows, misses = len(self._lately), self._lately.count(False)
        self.is_drifting = misses > 1 and _tail(misses, rows, 1 - self._share) < _CHANCE
        return self.is_drifting


def _tail(misses: int, rows: int, chance: float) -> float:
    """Return how likely so many misses or more are."""
    few = sum(math.comb(rows, n) * chance**n * (1 - chance) ** (rows - n) for n in range(misses))
    return 1.0 - few
