"""The template as written, and in-context learning: labelled examples in front of every text.

Both are baselines. Examples in front are also a start of tuning (`BehindShots`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from cuecraft.artifact import HardPrompt
from cuecraft.artifact.predictor import finite
from cuecraft.core.errors import MethodError, PromptError
from cuecraft.core.events import SearchStep
from cuecraft.core.options import Options
from cuecraft.core.seeding import numpy_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import (
    Calibrated,
    CalibrationKind,
    Labelled,
    Method,
    OtherTask,
    Outcome,
    Problem,
    Selection,
    require_language_head,
)
from cuecraft.methods.search.halving import halving_rounds
from cuecraft.methods.untuned import begin, calibration_of, untuned_prompt
from cuecraft.task import Shot, Task


@dataclass
class WithShots(OtherTask):
    """Reads every text behind labelled examples, which are text and part of the manifest."""

    name: str = "in-context"

    @property
    def size(self) -> int:
        """Tokens of the examples."""
        ids = [self.backbone.renderer(task).template_length() for task in (self.task, replace(self.task, shots=()))]
        return ids[0] - ids[1]


class ShotChoice(StrEnum):
    """Which labelled examples stand in front of a text."""

    SEED = "seed"  # the same in front of every text, drawn by seed, classes in turn
    NEAREST = "nearest"  # of each text those nearest to it by the backbone's features


Choice = Annotated[
    ShotChoice, Field(description="`seed`: the same examples for all texts; `nearest`: to each text its nearest ones")
]


@dataclass(frozen=True)
class Chosen:
    """Labelled examples that stand in front of texts.

    Args:
        task: the problem's, with the examples.
        others: rows of the training examples that never see their own label in front of them.
    """

    task: Task
    others: list[int]


class InContext(Method):
    """Labelled examples in front of every text, in the task's own template (Brown et al., NeurIPS 2020, 2005.14165).

    They are training examples: chosen by seed, classes in turn, in an order that the seed draws; or the nearest to each
    text (Liu et al., 2022, arXiv 2101.06804). No dev example is among them. The answers are calibrated on the training
    examples without their own labels in front of them.
    """

    name: ClassVar[str] = "in-context"

    shots: int = Field(4, ge=1, description="labelled examples in front of each text, all classes together")
    choice: Choice = ShotChoice.SEED
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Choose the examples and calibrate the answers behind them.

        Raises:
            MethodError: the backbone has no words to answer with, or there are too few training examples.
            PromptError: the examples do not fit in front of a text.
        """
        require_language_head(problem, self.name)
        needs_others = self.calibration in (CalibrationKind.BATCH, CalibrationKind.FITTED)
        use = f"calibration={self.calibration.value}" if needs_others else ""
        chosen = choose_shots(problem, self.shots, self.choice, self.name, use)
        selection = Selection(problem)
        with problem.in_time():
            candidate, found = self._calibrated(problem, chosen)
            step = SearchStep(self.name, 0, shots=self.shots, choice=self.choice.value)
            selection.see(candidate, found, step)
        # It answers without the untuned prompt, which is shown next to it and ships only where the time ended first.
        return selection.outcome(untuned_prompt(problem, self.calibration)[0])

    @torch.no_grad()
    def _calibrated(self, problem: Problem, chosen: Chosen) -> tuple[Candidate, Score]:
        """Return the template's own words behind the examples, calibrated, and their score on the training examples."""
        prompt, reader, train = HardPrompt(problem.initial_ids), WithShots(problem.backbone, chosen.task), problem.train
        with reader.over(train.context) as (backbone, context):
            logits = finite(backbone.class_logits(context, prompt), backbone, problem.task.answers)
        apart = replace(problem, task=chosen.task, train=train.select(chosen.others))
        calibration = calibration_of(apart, prompt, self.calibration, logits[chosen.others])
        found = Candidate(prompt, calibration, reader)
        return found, train.scores(found.joined(logits[None], problem.objective)).mean


class BehindShots(Options):
    """Options of methods that can tune the prompt behind labelled examples (related: Blau et al., 2024, 2410.17222)."""

    name: ClassVar[str]

    shots: int = Field(0, ge=0, description="labelled examples in front of each text, which the prompt is tuned behind")
    choice: Choice = ShotChoice.SEED

    def tuned_behind(self, problem: Problem, tune: Callable[[Problem], Outcome]) -> Outcome:
        """Tune on the problem with labelled examples in front of every text; on the problem itself for 0 of them.

        No text sees its own label: what stands there by seed is not trained on, nor are copies of it, and
        a text is never one of the nearest to itself. The untuned prompt of the outcome stands behind the examples, too.

        Raises:
            MethodError: the backbone has no words to answer with, or there are too few training examples.
            PromptError: the examples do not fit in front of a text.
        """
        if not self.shots:
            return tune(problem)
        require_language_head(problem, f"{self.name} with shots={self.shots}")
        chosen = choose_shots(problem, self.shots, self.choice, self.name, "training")
        behind: list[Problem] = []
        with problem.in_time():
            behind.append(_behind(problem, chosen))
        if behind:
            return _as_of(problem, tune(behind[0]), chosen.task)
        start = untuned_prompt(problem, CalibrationKind.NONE)[0]
        return Outcome(start, start, [])


def choose_shots(problem: Problem, count: int, choice: ShotChoice, name: str, use: str) -> Chosen:
    """Choose training examples to stand in front of texts.

    Args:
        problem: the problem.
        count: in front of each text.
        choice: how.
        name: of the method.
        use: what else a training example is needed for; empty for nothing.

    Raises:
        MethodError: there are too few training examples.
        PromptError: the examples do not fit in front of a text.
    """
    strata = problem.train.golds.strata
    is_nearest = choice is ShotChoice.NEAREST
    most = len(strata) - (1 if use or is_nearest else 0)
    if count > most:
        for_what = f", one of them for {use}" if use else ", and a text is none of its own"
        raise MethodError(
            f"{name} is to put {count} examples in the prompt, and there are {len(strata)} training examples"
            f"{for_what if most < len(strata) else ''}; give more, or shots={max(1, most)}"
        )
    if is_nearest:
        shots = tuple(_shot(problem, row) for row in range(len(strata)))
        lengths = problem.train.context.renderer.text_lengths(problem.train.context.examples)
        longest = sorted(range(len(strata)), key=lambda row: -lengths[row])
        _check_fit(problem, [shots[row] for row in longest[:count]])
        return Chosen(replace(problem.task, shots=shots, nearest=count), list(range(len(strata))))
    rounds = halving_rounds(strata, numpy_generator(problem.seed, "examples in the prompt"))
    rows = [row for drawn in rounds for row in drawn][:count]
    drawn = [_shot(problem, row) for row in rows]
    _check_fit(problem, drawn)
    order = numpy_generator(problem.seed, "order of examples in the prompt").permutation(count)
    shown = {shot.fields for shot in drawn}
    others = [row for row in range(len(strata)) if _shot(problem, row).fields not in shown]  # copies see the label too
    if use and not others:
        raise MethodError(
            f"{name}: all {len(strata)} training examples are in the prompt or copies, and {use} needs others; give "
            "more, or fewer shots"
        )
    return Chosen(replace(problem.task, shots=tuple(drawn[n] for n in order)), others)


def _behind(problem: Problem, chosen: Chosen) -> Problem:
    """Return the problem whose texts are read behind examples; those are no training examples any more."""

    def read(data: Labelled) -> Labelled:
        return replace(data, context=problem.backbone.context(data.context.examples, chosen.task))

    train = read(problem.train.select(chosen.others))
    return replace(problem, task=chosen.task, train=train, dev=problem.dev and read(problem.dev))


def _as_of(problem: Problem, outcome: Outcome, task: Task) -> Outcome:
    """Return an outcome behind examples as one of the problem without them: its candidates read behind them."""
    reader = WithShots(problem.backbone, task)
    start, best = (replace(own, reader=reader) for own in (outcome.start, outcome.best))
    words = outcome.words and replace(outcome.words, reader=reader)
    return replace(outcome, start=start, best=best if outcome.is_tuned else start, words=words)


def _shot(problem: Problem, row: int) -> Shot:
    """Return a training example as one of the prompt: the fields that the template names, and its answer."""
    example, names = problem.train.context.examples[row], problem.task.template.field_names
    fields = tuple((name, example.fields[name]) for name in names)
    return Shot(fields, problem.train.golds.values[row], example.options)


def _check_fit(problem: Problem, shots: Sequence[Shot]) -> None:
    """Raise PromptError unless a text as long as the longest example fits behind the examples, whole as they are."""

    def free(count: int) -> int | None:
        return problem.backbone.renderer(replace(problem.task, shots=tuple(shots[:count]))).free_tokens

    plain = problem.train.context.renderer
    longest = [max(plain.text_lengths([shot.example for shot in shots[:n]])) for n in range(1, 1 + len(shots))]
    fits = [left is None or left >= need for left, need in ((free(n), need) for n, need in enumerate(longest, 1))]
    if fits[-1]:
        return
    count = fits.index(False)
    remedy = f"{count} would fit, so give shots={count}" if count else "none would fit; give shorter ones"
    raise PromptError(
        f"{len(shots)} examples in the prompt do not fit into {plain.max_tokens} tokens with a text as long as the "
        f"longest of them ({longest[-1]} tokens); {remedy}"
    )


class ZeroShot(Method):
    """No tuning; labels are used by the `fitted` calibration only, texts by `batch`."""

    name: ClassVar[str] = "zero-shot"

    calibration: Calibrated = CalibrationKind.NONE

    def fit(self, problem: Problem) -> Outcome:
        """Return the template's own words."""
        require_language_head(problem, self.name)
        start, selection = begin(problem, self.calibration, phase=self.name)
        return selection.outcome(start)
