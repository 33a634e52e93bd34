"""The time limit of a run: a clock, and passes over a model that end when it is over.

A method looks at the clock between its steps. A pass over many examples may take longer than all of the limit, so that
every loop over batches looks too (`check_time`), and ends the pass there by `OutOfTimeError`, which no caller of a
method ever sees: `WhileTimeLasts` takes it, where what was found before is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

#: Of the limit, at most, that is kept back for what comes after the method.
_KEPT_BACK = 0.25


class Clock(Protocol):
    """Returns whether fewer seconds are left than are needed."""

    def __call__(self, reserve: float = 0.0) -> bool:
        """Return whether fewer than `reserve` seconds are left."""
        ...


class OutOfTimeError(Exception):
    """The time limit ended within a pass, whose result is lost."""


class Deadline:
    """When a time limit ends, which begins with its making.

    Args:
        limit: seconds; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self._ends = None if limit is None else time.monotonic() + limit
        self._kept_back = 0.0

    def __call__(self, reserve: float = 0.0) -> bool:
        """Return whether fewer than `reserve` seconds are left for a method."""
        return self.is_over(reserve + self._kept_back)

    def is_over(self, reserve: float = 0.0) -> bool:
        """Return whether fewer than `reserve` seconds are left in all, those that were kept back included."""
        return self._ends is not None and time.monotonic() + reserve >= self._ends

    def keep_back(self, seconds: float) -> None:
        """Leave a method so many seconds less, a quarter of the limit at most: what follows it needs them."""
        if self.limit is not None:
            self._kept_back = min(seconds, _KEPT_BACK * self.limit)


_is_over: ContextVar[Callable[[], bool] | None] = ContextVar("is_over", default=None)


def check_time() -> None:
    """Raise OutOfTimeError where the time of the work in progress is over; every loop over batches calls this."""
    is_over = _is_over.get()
    if is_over is not None and is_over():
        raise OutOfTimeError


class WhileTimeLasts:
    """A context whose passes end with the time; what is cut short is left, and what it kept before stays.

    Args:
        is_over: whether the time is over; asked between batches.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._own = is_over

    def __enter__(self) -> None:
        self._token = _is_over.set(self._own)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        """Take an OutOfTimeError."""
        _is_over.reset(self._token)
        return kind is not None and issubclass(kind, OutOfTimeError)
