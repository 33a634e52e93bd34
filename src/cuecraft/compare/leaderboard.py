"""A leaderboard: several methods on the same splits of one task, over one read of the texts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuecraft.method import Event, Labelled, Method, Outcome, Problem, Score, score
from cuecraft.prompts import stored_bytes
from cuecraft.tune import make_method


@dataclass(frozen=True)
class Row:
    """One method's result.

    Args:
        name: as shown.
        method: the method with its options.
        outcome: what it found.
        dev: score on dev, which the winner is chosen by.
        test: score on test, for reporting only.
        interval: of the test accuracy, 95%.
        seconds: of search and training, contexts already read.
        tuned_parameters: numbers that were trained or tokens that were chosen.
        stored_bytes: of the prompt's tensors.
    """

    name: str
    method: Method
    outcome: Outcome
    dev: Score
    test: Score
    interval: tuple[float, float]
    seconds: float
    tuned_parameters: int
    stored_bytes: int


@dataclass(frozen=True)
class Leaderboard:
    """The rows, in the order they were run."""

    rows: tuple[Row, ...]

    @property
    def winner(self) -> Row:
        """The row of least dev loss; of equals, the first. The test set has no say."""
        return min(self.rows, key=lambda row: row.dev.loss)


def wilson_interval(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% Wilson score interval of an accuracy measured on `count` examples."""
    middle = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def tuned_parameters(outcome: Outcome) -> int:
    """Return how many numbers a method trained: vector components and head weights, or tokens chosen."""
    prompt = outcome.best.prompt
    head = prompt.head.weight.numel() + prompt.head.bias.numel() if prompt.head else 0
    return prompt.size + head if outcome.is_tuned else 0


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
        started: is told each shown name and returns the listener of its steps.
    """
    rows = []
    for name, kind, options in methods:
        method = make_method(kind, options)
        own = replace(problem, report=started(name))
        begun = time.perf_counter()
        outcome = method.fit(own)
        seconds = time.perf_counter() - begun
        assert problem.dev is not None
        dev, tested = (score(problem.backbone, outcome.best, part) for part in (problem.dev, test))
        rows.append(
            Row(
                name,
                method,
                outcome,
                dev,
                tested,
                wilson_interval(tested.accuracy, len(test)),
                seconds,
                tuned_parameters(outcome),
                stored_bytes(outcome.best.prompt),
            )
        )
    return Leaderboard(tuple(rows))
