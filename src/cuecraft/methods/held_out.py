"""Cross-validation: stratified folds, their problems, and what prompts answer to the part that is held out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from cuecraft.artifact import Calibration, Prompt
from cuecraft.backbone import SequenceBackbone
from cuecraft.backbone.budget import same_width
from cuecraft.core.seeding import derived_seed, numpy_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Evidence, Tried, compare_paired
from cuecraft.methods.objectives import Golds, Score, Scores
from cuecraft.methods.problem import CalibrationKind, Labelled, Problem
from cuecraft.methods.search.halving import halving_rounds
from cuecraft.methods.untuned import calibration_of
from cuecraft.task import AnswerSpace, Example

_RECALIBRATION_FOLDS = 16


class Fold(NamedTuple):
    """Which rows are learnt from and which are held out."""

    train: list[int]
    held_out: list[int]


def texts_of(examples: Sequence[Example]) -> list[Hashable]:
    """Return `[N]` what each example's text is, alike for copies."""
    return [tuple(sorted(example.fields.items())) for example in examples]


def stratified_folds(
    strata: Sequence[int] | Tensor, count: int, seed: int, groups: Sequence[Hashable] | None = None
) -> list[Fold]:
    """Return stratified folds (scikit-learn): `count`, or as many as the rarest stratum has different groups.

    Each leaves examples of every stratum to learn from. Returns none where that cannot be, as where a class has one
    example only: then there is nothing to check a prompt on.

    Args:
        strata: `[N]` numbers of what every fold holds in equal shares, such as classes (`AnswerSpace.strata`).
        count: folds, at most.
        seed: of the shuffle.
        groups: `[N]` what must not be split, such as the texts: a copy of a text that was learnt from proves nothing.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = [int(own) for own in strata]
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
    """Return some examples, at least two of each stratum in turn, and their folds; none where they cannot be split.

    Args:
        problem: gives the seed and the answer space.
        pool: all labelled examples.
        count: how many, at least; all where there are fewer.
        folds: how many.
    """
    order = halving_rounds(pool.golds.strata, numpy_generator(problem.seed, "screened"))
    few = max(count, problem.task.answers.fewest)
    some = pool.select(sorted([row for part in order for row in part][:few]))
    return some, stratified_folds(some.golds.strata, folds, problem.seed, texts_of(some.context.examples))


@torch.no_grad()
def held_out_values(problem: Problem, candidate: Candidate) -> Tensor:
    """Return what a candidate answers to the problem's dev set: calibrated values `[n, O]`."""
    assert problem.dev is not None
    return candidate.logits(problem.backbone, problem.dev.context)


@dataclass(frozen=True)
class HeldOut:
    """Answers to held-out examples.

    Args:
        values: `[n, O]` calibrated values as `Objective.normalised` gives them: log-probabilities (nats) of labels.
        golds: `[n]` right answers.
        sizes: how many of them each fold has, in order.
        primary: `[n]` primary scores of decisions that were fitted to other answers (`Objective.decided`); None for
            those of the values as they are.
    """

    values: Tensor
    golds: Golds
    sizes: tuple[int, ...]
    primary: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Tensor], golds: Golds, folds: Sequence[Fold]) -> HeldOut:
        """Return the answers to the held-out parts of folds.

        Args:
            parts: `[n, O]` calibrated values of each fold; O may differ.
            golds: right answers in the same order.
            folds: which rows are held out.
        """
        values = golds.objective.normalised(torch.cat(same_width(parts))).cpu()
        return cls(values, replace(golds, device=values.device), tuple(len(fold.held_out) for fold in folds))

    @cached_property
    def scores(self) -> Scores:
        """How good each answer is."""
        found = self.golds.scores(self.values)
        return found if self.primary is None else replace(found, primary=self.primary)

    @property
    def score(self) -> Score:
        """Mean loss and primary score over all of them."""
        return self.scores.mean

    def is_near(self, best: HeldOut, errors: float = 1.0) -> bool:
        """Return whether these answers are within so many standard errors of better ones to the same examples.

        By the mean loss and the standard error of the paired difference (Breiman et al., 1984, section 3.4.3).
        """
        difference = self.scores.losses - best.scores.losses
        error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return float(difference.mean()) <= errors * error

    def compared_with(self, untuned: HeldOut, seed: int) -> Evidence:
        """Compare these answers with the untuned prompt's to the same examples; `seed` is of the permutation test."""
        return compare_paired(self.scores, untuned.scores, seed)

    def recalibrated(self, seed: int) -> HeldOut:
        """Return the answers with another temperature, every few of them by all others.

        What is trained on few examples is too sure of itself. That costs loss, and a temperature takes it back. One
        number only: more of them, fitted to a few dozen answers, cost more than they gain.
        """
        found, objective = self.values.clone(), self.golds.objective
        for learnt, held in stratified_folds(self.golds.strata, _RECALIBRATION_FOLDS, seed):
            temperature = self.golds.select(learnt).tempered(self.values[learnt])
            found[held] = objective.normalised(temperature.apply(self.values[held]))
        return replace(self, values=found, primary=None).cross_decided(seed)

    def cross_decided(self, seed: int) -> HeldOut:
        """Return the answers with what decisions take from others of them, every few by all others.

        The loss has no part in decisions. Where they take nothing, these are the same answers.
        """
        if not self.golds.objective.answers.fits_decisions:
            return self
        primary = self.golds.scores(self.values).primary.clone()
        for learnt, held in stratified_folds(self.golds.strata, _RECALIBRATION_FOLDS, seed):
            decided = self.golds.select(learnt).decided(self.values[learnt]).objective
            primary[held] = decided.scores(self.values[held], self.golds.select(held).values)
        return replace(self, primary=primary)

    @property
    def decided(self) -> AnswerSpace:
        """The answer space with what its decisions take from all of the answers (`Objective.decided`)."""
        return self.golds.objective.decided(self.values, self.golds.values)

    def calibration(self) -> Calibration:
        """Return the temperature fitted to all of the answers."""
        return self.golds.tempered(self.values)

    @property
    def sd(self) -> float | None:
        """The standard deviation of the primary score over folds (denominator n - 1); None with fewer than two."""
        means = torch.stack([part.mean() for part in self.scores.primary.split(self.sizes)])
        return float(means.std()) if len(means) > 1 else None

    def tried(self, name: str, seconds: float) -> Tried:
        """Return the line of the leaderboard of what was tried under a name, and took so many seconds."""
        own = self.score
        return Tried(name, own.loss, own.primary, self.sd, len(self.sizes), len(self.golds), seconds, own.measure)


def gather(parts: Sequence[Tensor], golds: Golds, folds: Sequence[Fold]) -> HeldOut:
    """Return the answers of some folds, one part `[n, O]` for each, as one; `golds` are of all rows."""
    return HeldOut.of(parts, golds.select([row for fold in folds for row in fold.held_out]), folds)


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
    found = [own.calibration.apply(part.double()) for own, part in zip(candidates, logits, strict=True)]
    return HeldOut.of(found, reduce(Golds.joined, [part.golds for part in parts]), folds)


@torch.no_grad()
def untuned_answers(
    problem: Problem, pool: Labelled, prompts: Sequence[Prompt], folds: Sequence[Fold]
) -> Callable[[int, CalibrationKind], HeldOut]:
    """Read the examples with prompts in words; return what a prompt answers to the held-out parts, by calibration.

    Every example is read once for each prompt. Calibrations, and class heads, are fitted to the training part of each
    fold.
    """
    backbone, objective = problem.backbone, problem.objective
    is_read_by_head = isinstance(backbone, SequenceBackbone)
    if is_read_by_head:
        read = torch.stack([backbone.features(pool.context, prompt) for prompt in prompts])
    else:
        read = backbone.class_logits_many(pool.context, prompts)

    def answers(number: int, kind: CalibrationKind) -> HeldOut:
        own, parts = read[number], []
        for fold in folds:
            train, held = fold.train, own[fold.held_out]
            if is_read_by_head:
                head = objective.fitted_head(own[train], pool.golds.select(train).values)
                logits = objective.by_head(held, head)
            else:
                fitted = replace(problem, train=pool.select(train))
                logits = calibration_of(fitted, prompts[number], kind, own[train]).apply(held)
            parts.append(logits)
        return gather(parts, pool.golds, folds)

    return answers
