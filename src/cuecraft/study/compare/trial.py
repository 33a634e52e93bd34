"""One method on one split: fitted once, timed, and scored on dev and test. All comparisons run through here.

Meters: memory at its highest, and the time of answers on texts read fresh.
"""

from __future__ import annotations

import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cuecraft.artifact import stored_bytes
from cuecraft.core.events import Event
from cuecraft.methods.candidate import fresh_decisions
from cuecraft.methods.fit import decided_answers
from cuecraft.methods.objectives import Score, Scores
from cuecraft.methods.problem import Labelled, Method, Outcome, Problem, score
from cuecraft.study.compare.statistics import wilson_interval
from cuecraft.task import AnswerSpace, Decision

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
BATCH_ROWS, QUERY_ROWS, WARM_UP = 64, 30, 3
REPEAT_SECONDS, REPEAT_SHARE = 5.0, 0.1


@dataclass
class Memory:
    """Peak memory of a block of code, in bytes; None where it cannot be had.

    Args:
        peak: the highest value: resident memory of the process on a CPU, the allocator's on a GPU.
        rise: how far that is above the value before the block.
    """

    peak: int | None = None
    rise: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Measure a block of code; the numbers are there when the block has ended.

    On a CPU this needs Linux. It resets the process's own high-water mark of resident memory (`VmHWM`).
    """
    found = Memory()
    gc.collect()  # what an earlier run left behind in cycles
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _reset_resident() if device.type == "cpu" else None
    yield found
    if before is not None:
        found.peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
        found.rise = found.peak - before


def peak_bytes(run: Callable[[], object]) -> int:
    """Return by how much a call raises this process's resident memory at its highest.

    Raises:
        OSError: not on Linux, or /proc cannot be used.
    """
    with peak_memory(torch.device("cpu")) as memory:
        run()
    if memory.rise is None:
        raise OSError("resident memory can be measured through /proc of Linux only")
    return memory.rise


def _reset_resident() -> int | None:
    """Set the high-water mark to what is resident now, and return that, with freed memory given back first."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, AttributeError):  # no glibc, no Linux, or /proc is read-only
        return None


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


@dataclass(frozen=True)
class Speed:
    """How fast answers come on texts read fresh.

    Args:
        examples_per_second: with all rows given at once.
        rows: how many that were.
        latencies: seconds of each query of one text.
    """

    examples_per_second: float
    rows: int
    latencies: tuple[float, ...]


def answer_speed(answer: Callable[[Sequence[T]], object], rows: Sequence[T]) -> Speed:
    """Time answers: one text at a time after a few that warm up, then many at once.

    Args:
        answer: answers some rows and returns when the answers are there.
        rows: at least one; the first 30 are queried alone, the first 64 together.
    """
    for turn in range(WARM_UP):
        answer([rows[turn % len(rows)]])
    latencies = tuple(_seconds(answer, [row]) for row in rows[:QUERY_ROWS])
    many = rows[:BATCH_ROWS]
    return Speed(len(many) / _seconds(answer, many), len(many), latencies)


def _seconds(answer: Callable[[Sequence[T]], object], rows: Sequence[T]) -> float:
    begun = time.perf_counter()
    answer(rows)
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Trial:
    """One method's result on one split.

    Args:
        name: as shown.
        method: the method with its options.
        outcome: what it found.
        dev: score on dev, which a winner is chosen by; of a method that learns from dev too, its own held-out score.
        test: score on test, for reporting only.
        predictions: `[N]` number of the likeliest option on test.
        answers: the answer space, with what its decisions take from held-out answers.
        values: `[N, O]` calibrated values on test, float64.
        decisions: `[N]` what is answered on test.
        scores: `[N]` how good the answers on test are.
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
    answers: AnswerSpace
    values: Tensor
    decisions: Sequence[Decision]
    scores: Scores
    events: tuple[Event, ...]
    seconds: float
    memory: Memory
    tuned_parameters: int
    stored_bytes: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the test accuracy."""
        return wilson_interval(self.test.primary, len(self.predictions))


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
    answers = decided_answers(problem, outcome, problem.task.answers)
    with torch.no_grad():
        logits = outcome.best.logits(problem.backbone, test.context)
    values, scores = logits.double().cpu(), test.decided_by(answers).scores(logits)
    if answers.is_open:  # by the words that are found, and not by what is read of right answers alone
        (decisions,) = fresh_decisions(problem.backbone, problem.task, [outcome.best], test.context.examples, [answers])
        found = [
            answers.measure([own], [gold])[answers.primary]
            for own, gold in zip(decisions, test.golds.values, strict=True)
        ]
        scores = replace(scores, primary=torch.tensor(found, dtype=torch.float64), measure=answers.primary)
    else:
        decisions = answers.decide(answers.probabilities(values.numpy()), test.context.examples)
    return Trial(
        name,
        method,
        outcome,
        outcome.held_out or score(problem.backbone, outcome.best, problem.dev.decided_by(answers)),
        scores.mean,
        logits.argmax(-1).cpu(),
        answers,
        values,
        decisions,
        scores,
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


def _exact(events: Sequence[Event]) -> str:
    """Return events as text that is equal where they are equal bit for bit, NaN included."""
    return json.dumps([event.document() for event in events], sort_keys=True)
