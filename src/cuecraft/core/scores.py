"""Scores as a person reads them: an error is shown without the minus that makes it a score."""

from __future__ import annotations

_ERROR = "neg_"  # in the name of a score that is minus an error


def readable(name: str, value: float) -> tuple[str, float]:
    """Return name and value for a person: ("mean absolute error", .5) of ("neg_mean_absolute_error", -.5)."""
    called = name.replace(_ERROR, "").replace("_at_", "@").replace("_", " ")
    return called, -value if is_error(name) else value


def is_error(name: str) -> bool:
    """Return whether a score is minus an error."""
    return _ERROR in name
