"""Cross-validation: stratified folds, their problems, and what prompts answer to the part that is held out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cuecraft.artifact import Calibration, HardPrompt, calibration
from cuecraft.artifact.calibration import fitted_head
from cuecraft.artifact.predictor import Candidate
from cuecraft.backbone import SequenceBackbone
from cuecraft.backbone.columns import class_scores
from cuecraft.core.seeding import derived_seed, numpy_generator
from cuecraft.methods.evidence import Evidence, compare_paired
from cuecraft.methods.problem import CalibrationKind, Labelled, Problem, Score
from cuecraft.methods.search.halving import halving_rounds
from cuecraft.methods.untuned import calibration_of
from cuecraft.task import Example

_RECALIBRATION_FOLDS = 16


class Fold(NamedTuple):
    """Which rows are learnt from and which are held out."""

    train: list[int]
    held_out: list[int]


def texts_of(examples: Sequence[Example]) -> list[Hashable]:
    """Return `[N]` what each example's text is, alike for copies."""
    return [tuple(sorted(example.fields.items())) for example in examples]


def stratified_folds(labels: Tensor, count: int, seed: int, groups: Sequence[Hashable] | None = None) -> list[Fold]:
    """Return stratified folds (scikit-learn): `count`, or as many as the rarest class has different groups.

    Each leaves examples of every class to learn from. Returns none where that cannot be, as where a class has one
    example only: then there is nothing to check a prompt on.

    Args:
        labels: `[N]` class numbers.
        count: folds, at most.
        seed: of the shuffle.
        groups: `[N]` what must not be split, such as the texts: a copy of a text that was learnt from proves nothing.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = labels.tolist()
    groups = range(len(known)) if groups is None else groups
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    own = [numbers[group] for group in groups]
    rarest = min(Counter(label for label, _ in set(zip(known, own, strict=True))).values())
    random_state = derived_seed(seed, "folds") % 2**32
    is_grouped = len(numbers) < len(known)
    for splits in range(min(count, rarest), 1, -1):
        options = {"n_splits": splits, "shuffle": True, "random_state": random_state}
        parts = (
            StratifiedGroupKFold(**options).split(known, known, own)
            if is_grouped
            else StratifiedKFold(**options).split(known, known)
        )
        folds = [Fold(train.tolist(), held.tolist()) for train, held in parts]
        if all(fold.held_out and {known[row] for row in fold.train} == set(known) for fold in folds):
            return folds
    return []


def fold_problem(problem: Problem, pool: Labelled, folds: Sequence[Fold], number: int) -> Problem:
    """Return the problem of one fold: its held-out part is the dev set."""
    fold = folds[number]
    return replace(
        problem,
        train=pool.select(fold.train),
        dev=pool.select(fold.held_out),
        seed=derived_seed(problem.seed, f"fold/{number}"),
    )


def few_examples(problem: Problem, pool: Labelled, count: int, folds: int) -> tuple[Labelled, list[Fold]]:
    """Return some examples, at least two of each class in turn, and their folds; none where they cannot be split.

    Args:
        problem: gives the seed and the classes.
        pool: all labelled examples.
        count: how many, at least; all where there are fewer.
        folds: how many.
    """
    order = halving_rounds(pool.labels.tolist(), numpy_generator(problem.seed, "screened"))
    few = max(count, 2 * problem.task.verbalizer.num_classes)  # two of a class can be split
    some = pool.select(sorted([row for part in order for row in part][:few]))
    return some, stratified_folds(some.labels, folds, problem.seed, texts_of(some.context.examples))


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

    def is_near(self, best: HeldOut, errors: float = 1.0) -> bool:
        """Return whether these answers are within so many standard errors of better ones to the same examples.

        By the mean log-loss and the standard error of the paired difference (Breiman et al., 1984, section 3.4.3).
        """
        difference = self.losses - best.losses
        error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return float(difference.mean()) <= errors * error

    def compared_with(self, untuned: HeldOut, seed: int) -> Evidence:
        """Compare these answers with the untuned prompt's to the same examples; `seed` is of the permutation test."""
        return compare_paired(self.log_probs.numpy(), untuned.log_probs.numpy(), self.labels.numpy(), seed)

    def recalibrated(self, seed: int) -> HeldOut:
        """Return the answers with another temperature, every few of them by all others.

        What is trained on few examples is too sure of itself. That costs log-loss, and a temperature takes it back. One
        number only: more of them, fitted to a few dozen answers, cost more than they gain.
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
def answers_of_folds(problems: Sequence[Problem], candidates: Sequence[Candidate], folds: Sequence[Fold]) -> HeldOut:
    """Return what the candidate of each fold answers to its held-out part.

    Args:
        problems: of the folds; the dev set of each is its held-out part.
        candidates: one for each, which the problem's own backbone reads.
        folds: in the same order.
    """
    parts = []
    for own in problems:
        assert own.dev is not None
        parts.append(own.dev)
    pairs = [(part.context, own.prompt) for part, own in zip(parts, candidates, strict=True)]
    logits = problems[0].backbone.class_logits_each(pairs)
    found = [
        own.calibration.apply(part.double()).log_softmax(-1).cpu() for own, part in zip(candidates, logits, strict=True)
    ]
    sizes = tuple(len(fold.held_out) for fold in folds)
    return HeldOut(torch.cat(found), torch.cat([part.labels.cpu() for part in parts]), sizes)


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
