"""Methods side by side on one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.compare.leaderboard import Leaderboard, run_methods
    from cuecraft.compare.statistics import wilson_interval
    from cuecraft.compare.trial import Trial

__all__ = ["Leaderboard", "Trial", "run_methods", "wilson_interval"]

# Loaded on first use: the statistics are used where nothing is trained.
_HOMES = {"Leaderboard": "leaderboard", "Trial": "trial", "run_methods": "leaderboard", "wilson_interval": "statistics"}

__getattr__ = loaded_on_use(__name__, _HOMES)
