"""Methods side by side on one task."""

from cuecraft.compare.leaderboard import Leaderboard, Row, run_methods, wilson_interval

__all__ = ["Leaderboard", "Row", "run_methods", "wilson_interval"]
