"""The problems of the folds, and what prompts answer to the part that is held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone import SequenceBackbone
from cuecraft.backbone.readout import class_scores
from cuecraft.method import CalibrationKind, Candidate, Labelled, Problem, Score, Selection, calibration_of, fitted_head
from cuecraft.prompts import HardPrompt
from cuecraft.search.folds import Fold
from cuecraft.seeding import derived_seed


def pooled(problem: Problem) -> Labelled:
    """Return the training and dev examples together, in this order; nothing is read again."""
    return problem.train if problem.dev is None else problem.train.joined(problem.dev)


def fold_problem(problem: Problem, pool: Labelled, folds: Sequence[Fold], number: int) -> Problem:
    """Return the problem of one fold: its held-out part is the dev set."""
    fold = folds[number]
    return replace(
        problem,
        train=pool.select(fold.train),
        dev=pool.select(fold.held_out),
        seed=derived_seed(problem.seed, f"fold/{number}"),
    )


@dataclass
class HeldOut(Selection):
    """Keeps the answers to the held-out examples after every epoch, `[n, C]` log-probabilities each."""

    answers: list[Tensor] = field(default_factory=list)

    def see(self, candidate: Candidate, train: Score, dev: Score | None = None, **details: Any) -> bool:
        """Consider a candidate; keep what it answers."""
        held = self.problem.dev
        assert held is not None
        with torch.no_grad():
            logits = candidate.logits(self.problem.backbone, held.context)
        self.answers.append(logits.double().log_softmax(-1).cpu())
        return super().see(candidate, train, Score.of(logits, held.labels), **details)

    def state(self) -> dict[str, Any]:
        """Return how far it has come, JSON-ready."""
        return super().state() | {"answers": [part.tolist() for part in self.answers]}

    def restore(self, state: Any, best: Candidate | None) -> None:
        """Go on from a state."""
        super().restore(state, best)
        self.answers = [torch.tensor(part, dtype=torch.float64) for part in state["answers"]]


@dataclass
class Latest(Selection):
    """Keeps the last candidate, for a training whose length is known."""

    def see(self, candidate: Candidate, train: Score, dev: Score | None = None, **details: Any) -> bool:
        """Keep the candidate."""
        self.best_score = None
        return super().see(candidate, train, dev, **details)


@dataclass(frozen=True)
class Answers:
    """Answers to held-out examples.

    Args:
        log_probs: `[n, C]` log-probabilities (nats), float64.
        labels: `[n]` class numbers.
        sizes: how many of them each fold has, in order.
    """

    log_probs: Tensor
    labels: Tensor
    sizes: tuple[int, ...]

    @property
    def score(self) -> Score:
        """Mean log-loss and accuracy over all of them."""
        return Score.of(self.log_probs, self.labels)

    def first(self, folds: int) -> Answers:
        """Return the answers of the first folds."""
        rows = sum(self.sizes[:folds])
        return Answers(self.log_probs[:rows], self.labels[:rows], self.sizes[:folds])

    @property
    def sd(self) -> float | None:
        """The standard deviation of the accuracy over folds (denominator n - 1); None with fewer than two."""
        hits = (self.log_probs.argmax(-1) == self.labels).double().split(self.sizes)
        accuracies = torch.stack([part.mean() for part in hits])
        return float(accuracies.std()) if len(accuracies) > 1 else None


def gather(parts: Sequence[Tensor], labels: Tensor, folds: Sequence[Fold]) -> Answers:
    """Return the answers of some folds, one part `[n, C]` for each, as one."""
    rows = [row for fold in folds for row in fold.held_out]
    return Answers(torch.cat(list(parts)), labels.cpu()[rows], tuple(len(fold.held_out) for fold in folds))


@torch.no_grad()
def untuned_answers(
    problem: Problem, pool: Labelled, prompts: Sequence[HardPrompt], folds: Sequence[Fold]
) -> Callable[[int, CalibrationKind], Answers]:
    """Read the examples with prompts in words; return what a prompt answers to the held-out parts, by calibration.

    Every example is read once for each prompt. Calibrations, and class heads, are fitted to the training part of each
    fold.
    """
    backbone, classes = problem.backbone, problem.task.verbalizer.num_classes
    is_read_by_head = isinstance(backbone, SequenceBackbone)
    if is_read_by_head:
        read = torch.stack([backbone.features(pool.context, prompt) for prompt in prompts])
    else:
        read = backbone.class_logits_many(pool.context, prompts)

    def answers(number: int, kind: CalibrationKind) -> Answers:
        own, parts = read[number], []
        for fold in folds:
            train, held = fold.train, own[fold.held_out]
            labels = pool.labels[train]
            if is_read_by_head:
                logits = class_scores(held, fitted_head(own[train], labels, classes))
            else:
                fitted = replace(problem, train=pool.select(train))
                logits = calibration_of(fitted, prompts[number], kind, own[train]).apply(held)
            parts.append(logits.double().log_softmax(-1).cpu())
        return gather(parts, pool.labels, folds)

    return answers
