"""In-context learning: labelled examples in front of every text, as a baseline that trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.backbone import AnyBackbone, Context
from cuecraft.errors import MethodError, PromptError
from cuecraft.method import (
    Calibrated,
    CalibrationKind,
    Candidate,
    Method,
    Outcome,
    Problem,
    Score,
    Selection,
    finite,
    require_language_head,
)
from cuecraft.prompts import HardPrompt
from cuecraft.search.elimination import halving_rounds
from cuecraft.seeding import numpy_generator
from cuecraft.task import Example, Shot, Task
from cuecraft.untuned import calibration_of, untuned_prompt


@dataclass
class WithShots:
    """Reads every text behind labelled examples.

    Args:
        backbone: the problem's.
        task: the problem's, with the examples.
        name: as a reader is called.
    """

    backbone: AnyBackbone
    task: Task
    name: str = "in-context"

    @property
    def size(self) -> int:
        """Tokens of the examples."""
        ids = [self.backbone.renderer(task).template_length() for task in (self.task, replace(self.task, shots=()))]
        return ids[0] - ids[1]

    def tensors(self) -> Mapping[str, Tensor]:
        """Return nothing: the examples are text, and stand in the manifest."""
        return {}

    @contextmanager
    def over(self, context: Context) -> Iterator[tuple[AnyBackbone, Context]]:
        """Lend the backbone, and its context of the same texts behind the examples."""
        yield self.backbone, self.backbone.context(context.examples, self.task, keep_bytes=0)


class InContext(Method):
    """Labelled examples in front of every text, in the task's own template (Brown et al., NeurIPS 2020, 2005.14165).

    They are chosen from the training examples by seed, classes in turn, and stand in an order that the seed draws. No
    dev example is among them. The answers are calibrated on the training examples that are not.
    """

    name: ClassVar[str] = "in-context"

    shots: int = Field(4, ge=1, description="labelled examples in front of each text, all classes together")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Choose the examples and calibrate the answers behind them.

        Raises:
            MethodError: the backbone has no words to answer with, or there are too few training examples.
            PromptError: the examples do not fit in front of a text.
        """
        require_language_head(problem, self.name)
        rows = self._chosen(problem)
        shots = [_shot(problem, row) for row in rows]
        _check_fit(problem, shots)
        order = numpy_generator(problem.seed, "order of examples in the prompt").permutation(len(shots))
        task = replace(problem.task, shots=tuple(shots[n] for n in order))
        selection = Selection(problem)
        with problem.in_time():
            candidate, found = self._calibrated(problem, task, rows)
            selection.see(candidate, found, phase=self.name, step=0, shots=len(shots))
        # It answers without the untuned prompt, which is shown next to it and ships only where the time ended first.
        return selection.outcome(untuned_prompt(problem, self.calibration)[0])

    def _chosen(self, problem: Problem) -> list[int]:
        """Return the training examples that stand in the prompt, in the order in which they were drawn."""
        count, labels = len(problem.train), problem.train.labels.tolist()
        needs_others = self.calibration in (CalibrationKind.BATCH, CalibrationKind.FITTED)
        most = count - needs_others
        if self.shots > most:
            others = f", one of them for calibration={self.calibration.value}" if needs_others else ""
            raise MethodError(
                f"{self.name} is to put {self.shots} examples in the prompt, and there are {count} training examples"
                f"{others}; give more, or shots={max(1, most)}"
            )
        rounds = halving_rounds(labels, numpy_generator(problem.seed, "examples in the prompt"))
        return [row for rows in rounds for row in rows][: self.shots]

    @torch.no_grad()
    def _calibrated(self, problem: Problem, task: Task, rows: Sequence[int]) -> tuple[Candidate, Score]:
        """Return the template's own words behind the examples, calibrated, and their score on the training examples.

        Args:
            problem: the problem.
            task: with the examples.
            rows: of the training examples, those in the prompt; the model would copy their labels.
        """
        prompt, reader, train = HardPrompt(problem.initial_ids), WithShots(problem.backbone, task), problem.train
        with reader.over(train.context) as (backbone, context):
            logits = finite(backbone.class_logits(context, prompt), backbone)
        others = [row for row in range(len(train)) if row not in set(rows)]
        apart = replace(problem, task=task, train=train.select(others))
        calibration = calibration_of(apart, prompt, self.calibration, logits[others])
        found = Candidate(prompt, calibration, reader)
        return found, Score.of(found.joined(logits[None]), train.labels, train.weights)


def _shot(problem: Problem, row: int) -> Shot:
    """Return a training example as one of the prompt: the fields that the template names, and its class."""
    fields, names = problem.train.context.examples[row].fields, problem.task.template.field_names
    return Shot(tuple((name, fields[name]) for name in names), int(problem.train.labels[row]))


def _check_fit(problem: Problem, shots: Sequence[Shot]) -> None:
    """Raise PromptError unless a text as long as the longest example fits behind the examples, whole as they are."""

    def free(count: int) -> int | None:
        return problem.backbone.renderer(replace(problem.task, shots=tuple(shots[:count]))).free_tokens

    plain = problem.train.context.renderer
    longest = [
        max(plain.text_lengths([Example(dict(shot.fields)) for shot in shots[:n]])) for n in range(1, 1 + len(shots))
    ]
    fits = [left is None or left >= need for left, need in ((free(n), need) for n, need in enumerate(longest, 1))]
    if fits[-1]:
        return
    count = fits.index(False)
    remedy = f"{count} would fit, so give shots={count}" if count else "none would fit; give shorter ones"
    raise PromptError(
        f"{len(shots)} examples in the prompt do not fit into {plain.max_tokens} tokens with a text as long as the "
        f"longest of them ({longest[-1]} tokens); {remedy}"
    )
