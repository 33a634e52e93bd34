"""A leaderboard: several methods on the same splits of one task, over one read of the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuecraft.compare.trial import Trial, run_trial
from cuecraft.events import Event
from cuecraft.method import Labelled, Problem
from cuecraft.tune import make_method


@dataclass(frozen=True)
class Leaderboard:
    """The methods' results, in the order they were run."""

    rows: tuple[Trial, ...]

    @property
    def winner(self) -> Trial:
        """The row of least dev loss; of equals, the first. The test set has no say."""
        return min(self.rows, key=lambda row: row.dev.loss)


def run_methods(
    problem: Problem,
    test: Labelled,
    methods: Sequence[tuple[str, str, Mapping[str, Any]]],
    started: Callable[[str], Callable[[Event], None]] = lambda name: lambda event: None,
) -> Leaderboard:
    """Run methods `(shown name, method, options)` on one problem and score each on the test examples.

    Args:
        problem: splits already read, with a dev set.
        test: held-out examples.
        methods: what to run, in this order.
        started: called with each shown name and returns the listener of its steps.
    """
    return Leaderboard(
        tuple(
            run_trial(name, make_method(kind, options), replace(problem, report=started(name)), test)
            for name, kind, options in methods
        )
    )
