"""Methods side by side on one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.study.compare.demo import Leaderboard, run_methods
    from cuecraft.study.compare.statistics import wilson_interval
    from cuecraft.study.compare.trial import Trial

__all__ = ["Leaderboard", "Trial", "run_methods", "wilson_interval"]

# Loaded on first use: the statistics are used where nothing is trained.
_HOMES = {
    "demo": (
        "Leaderboard",
        "run_methods",
    ),
    "statistics": ("wilson_interval",),
    "trial": ("Trial",),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
