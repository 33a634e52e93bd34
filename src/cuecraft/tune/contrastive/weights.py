"""Contrastive training of weights: the same loss, and the same class head afterwards, as an upper row of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import torch

from cuecraft.backbone import FeatureScale
from cuecraft.backbone.readout import class_scores
from cuecraft.gradients import features_of
from cuecraft.method import Problem, Score, Selection
from cuecraft.predictor import Candidate
from cuecraft.prompts import Calibration, with_head
from cuecraft.prompts.calibration import fitted_head
from cuecraft.tune.contrastive.objective import Contrast
from cuecraft.tune.loop import Latest, LoopOptions, Part, Trainable, train_side_by_side

#: Penalties of class heads on features of unit length, scikit-learn's C.
INVERSE_PENALTIES = (3.0, 10.0, 30.0, 100.0)


class Loss(StrEnum):
    """What a training of weights minimises."""

    CROSS_ENTROPY = "cross-entropy"
    CONTRASTIVE = "contrastive"


def without_head(candidate: Candidate) -> Candidate:
    """Return a candidate that gives features only."""
    plain = Calibration.none(len(candidate.calibration.bias))
    return replace(candidate, prompt=with_head(candidate.prompt, None), calibration=plain)


def train_then_fit_heads(
    options: LoopOptions, problem: Problem, trainable: Trainable, selection: Selection, temperature: float
) -> None:
    """Train to the last epoch, then fit a class head for each penalty, which `selection` sees.

    Args:
        options: of the loop.
        problem: the problem.
        trainable: what is trained.
        selection: has seen the untuned prompt, which stays where no head is better on dev.
        temperature: of the loss.
    """
    latest = Latest(replace(problem, dev=None))
    train_side_by_side(options, [Part(latest.problem, trainable, latest)], Contrast(temperature))
    selection.trace += latest.trace
    if latest.best is not None:
        _fit_heads(problem, latest.best, selection, INVERSE_PENALTIES)


@torch.no_grad()
def _fit_heads(problem: Problem, trained: Candidate, selection: Selection, penalties: Sequence[float]) -> None:
    train, dev = problem.train, problem.dev
    own = features_of(problem.backbone, trained, train)
    others = None if dev is None else features_of(problem.backbone, trained, dev)
    classes = problem.task.verbalizer.num_classes
    for step, penalty in enumerate(penalties):
        head = fitted_head(own, train.labels, classes, penalty, train.weights, FeatureScale.UNIT)
        candidate = replace(trained, prompt=with_head(trained.prompt, head))
        seen = Score.of(class_scores(own, head), train.labels, train.weights)
        held_out = None
        if dev is not None and others is not None:
            held_out = Score.of(class_scores(others, head), dev.labels, dev.weights)
        selection.see(candidate, seen, held_out, phase="class head", step=step, total=len(penalties))
