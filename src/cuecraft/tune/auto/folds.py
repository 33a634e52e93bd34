"""The problems of the folds, and what prompts answer to the part that is held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone import SequenceBackbone
from cuecraft.backbone.readout import class_scores
from cuecraft.evidence import Evidence, compare_paired
from cuecraft.method import CalibrationKind, Candidate, Labelled, Problem, Score, Selection
from cuecraft.prompts import Calibration, HardPrompt, calibration
from cuecraft.prompts.calibration import fitted_head
from cuecraft.search.folds import Fold, stratified_folds
from cuecraft.seeding import derived_seed
from cuecraft.untuned import calibration_of

_RECALIBRATION_FOLDS = 16


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
class LastEpoch(Selection):
    """Keeps the candidate after the last epoch, for a training whose length is known; looks at no other."""

    earlier: float = 0.0  # seconds that were spent on it by a run that was stopped

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return how far it has come, and the seconds spent on it."""
        return super().state() | {"seconds": self.earlier + time.perf_counter() - self._begun}

    def restore(self, state: Mapping[str, Any], best: Candidate | None) -> None:
        """Go on from a state."""
        super().restore(state, best)
        self.earlier = state["seconds"]

    def see(self, candidate: Candidate, train: Score, dev: Score | None = None, **details: Any) -> bool:
        """Take note of an epoch; keep the candidate of the last one."""
        self.last_score = train
        is_last: bool = details["step"] == details["total"]
        if is_last:
            self.best, self.best_score = candidate, train
        self.note({**details, "train_loss": train.loss, "train_accuracy": train.accuracy})
        return is_last


@torch.no_grad()
def log_probabilities(problem: Problem, candidate: Candidate) -> Tensor:
    """Return what a candidate answers to the problem's dev set: log-probabilities `[n, C]` (nats), float64."""
    assert problem.dev is not None
    return candidate.logits(problem.backbone, problem.dev.context).double().log_softmax(-1).cpu()


@dataclass(frozen=True)
class HeldOut:
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

    @property
    def losses(self) -> Tensor:
        """Log-losses `[n]` (nats)."""
        return -self.log_probs.gather(1, self.labels[:, None])[:, 0]

    def beside(self, untuned: HeldOut, seed: int) -> Evidence:
        """Compare these answers with the untuned prompt's to the same examples; `seed` is of the permutation test."""
        return compare_paired(self.log_probs.numpy(), untuned.log_probs.numpy(), self.labels.numpy(), seed)

    def first(self, folds: int) -> HeldOut:
        """Return the answers of the first folds."""
        rows = sum(self.sizes[:folds])
        return HeldOut(self.log_probs[:rows], self.labels[:rows], self.sizes[:folds])

    def recalibrated(self, seed: int) -> HeldOut:
        """Return the answers with another temperature, every few of them by all others.

        What is trained on few examples is too sure of itself. That costs log-loss, and can be mended afterwards. By one
        number only: more of them, fitted to a few dozen answers, cost more than they mend.
        """
        found = self.log_probs.clone()
        for learnt, held in stratified_folds(self.labels, _RECALIBRATION_FOLDS, seed):
            temperature = calibration.tempered(self.log_probs[learnt], self.labels[learnt])
            found[held] = temperature.apply(self.log_probs[held]).log_softmax(-1)
        return replace(self, log_probs=found)

    def calibration(self) -> Calibration:
        """Return the temperature fitted to all of the answers."""
        return calibration.tempered(self.log_probs, self.labels)

    @property
    def sd(self) -> float | None:
        """The standard deviation of the accuracy over folds (denominator n - 1); None with fewer than two."""
        hits = (self.log_probs.argmax(-1) == self.labels).double().split(self.sizes)
        accuracies = torch.stack([part.mean() for part in hits])
        return float(accuracies.std()) if len(accuracies) > 1 else None


def gather(parts: Sequence[Tensor], labels: Tensor, folds: Sequence[Fold]) -> HeldOut:
    """Return the answers of some folds, one part `[n, C]` for each, as one."""
    rows = [row for fold in folds for row in fold.held_out]
    return HeldOut(torch.cat(list(parts)), labels.cpu()[rows], tuple(len(fold.held_out) for fold in folds))


@torch.no_grad()
def untuned_answers(
    problem: Problem, pool: Labelled, prompts: Sequence[HardPrompt], folds: Sequence[Fold]
) -> Callable[[int, CalibrationKind], HeldOut]:
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

    def answers(number: int, kind: CalibrationKind) -> HeldOut:
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
