"""Methods side by side on one task."""

from cuecraft.compare.leaderboard import Leaderboard, run_methods
from cuecraft.compare.statistics import wilson_interval
from cuecraft.compare.trial import Trial

__all__ = ["Leaderboard", "Trial", "run_methods", "wilson_interval"]
