"""One method on one split: fitted once, timed, and scored on dev and test. All comparisons run through here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cuecraft.compare.meters import Memory, peak_memory
from cuecraft.compare.statistics import wilson_interval
from cuecraft.events import Event
from cuecraft.method import Labelled, Method, Outcome, Problem, Score, score
from cuecraft.prompts import stored_bytes

REPEAT_SECONDS, REPEAT_SHARE = 5.0, 0.1


@dataclass(frozen=True)
class Trial:
    """One method's result on one split.

    Args:
        name: as shown.
        method: the method with its options.
        outcome: what it found.
        dev: score on dev, which a winner is chosen by; of a method that learns from dev too, its own held-out score.
        test: score on test, for reporting only.
        predictions: `[N]` class numbers on test.
        events: what the method reported, step by step.
        seconds: of search and training, contexts already read.
        memory: while searching and training.
        tuned_parameters: numbers that were trained or tokens that were chosen.
        stored_bytes: of the prompt's tensors, and of tuned weights.
    """

    name: str
    method: Method
    outcome: Outcome
    dev: Score
    test: Score
    predictions: Tensor
    events: tuple[Event, ...]
    seconds: float
    memory: Memory
    tuned_parameters: int
    stored_bytes: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the test accuracy."""
        return wilson_interval(self.test.accuracy, len(self.predictions))


@dataclass(frozen=True)
class Repeat:
    """Whether a method did the same again.

    Args:
        same: every compared step was equal, bit for bit.
        steps: how many were compared.
    """

    same: bool
    steps: int


def run_trial(name: str, method: Method, problem: Problem, test: Labelled) -> Trial:
    """Fit a method and score what it found.

    Args:
        name: as shown.
        method: the method with its options.
        problem: splits already read, with a dev set; its listener is called with each step.
        test: held-out examples, already read.

    Raises:
        CuecraftError: the method cannot work with the problem.
    """
    assert problem.dev is not None
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        problem.report(event)

    begun = time.perf_counter()
    with peak_memory(problem.backbone.device) as memory:
        outcome = method.fit(replace(problem, report=listen))
    seconds = time.perf_counter() - begun
    reader = outcome.best.reader
    with torch.no_grad():
        logits = outcome.best.logits(problem.backbone, test.context)
    return Trial(
        name,
        method,
        outcome,
        outcome.held_out or score(problem.backbone, outcome.best, problem.dev),
        Score.of(logits, test.labels),
        logits.argmax(-1).cpu(),
        tuple(events),
        seconds,
        memory,
        outcome.tuned_size,
        stored_bytes(outcome.best.prompts, reader.tensors() if reader else None),
    )


def repeat_trial(trial: Trial, problem: Problem, clock: Callable[[], float] = time.perf_counter) -> Repeat:
    """Fit again for a tenth of the time, five seconds at least, and compare the steps of both runs.

    Only steps reported before the time ran out are compared, since a method that has to stop goes other ways from
    there; but the first step is compared in any case.

    Args:
        trial: the first run.
        problem: the one that it was run on.
        clock: seconds.
    """
    deadline = clock() + max(REPEAT_SECONDS, REPEAT_SHARE * trial.seconds)
    events: list[Event] = []
    in_time = 0  # events reported before the method first had to stop
    told = False

    def out_of_time(reserve: float = 0.0) -> bool:
        nonlocal told
        told = told or clock() + reserve >= deadline
        return told

    def listen(event: Event) -> None:
        nonlocal in_time
        events.append(event)
        in_time += not told
        problem.report(event)

    trial.method.fit(replace(problem, report=listen, out_of_time=out_of_time))
    steps = max(1, in_time)
    if not told:  # both went to the end: then there must be as many
        steps = max(len(events), len(trial.events))
    return Repeat(_exact(events[:steps]) == _exact(trial.events[:steps]), steps)


def _exact(events: list[Event] | tuple[Event, ...]) -> str:
    """Return events as text that is equal where they are equal bit for bit, NaN included."""
    return json.dumps(list(events), sort_keys=True)
