"""The contract of an objective: how good values are as answers, and what is fitted to them.

Shapes: B examples, T prompts, O options, d width of the features. Values `[..., B, O]` are what a backbone says of
options, calibrated or not; where examples bring options of their own, they are minus infinity behind an example's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cuecraft.artifact import Calibration, calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.backbone.columns import class_scores
from cuecraft.core.errors import MethodError
from cuecraft.task import AnswerSpace
from cuecraft.task.answers import Gold


class Objective(ABC):
    """What methods minimise on one kind of answers.

    Args:
        answers: the answer space.
    """

    def __init__(self, answers: AnswerSpace) -> None:
        self.answers = answers

    @abstractmethod
    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the loss of each example `[..., B]` (nats) of values `[..., B, O]`, differentiable."""

    @abstractmethod
    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the score of each example `[..., B]`, higher for better answers; no gradient.

        It is the primary one, or what `AnswerSpace.tuning_score` names.
        """

    @abstractmethod
    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return the calibration fitted to right answers of values `[B, O]`; weights `[B]` of the examples or None."""

    @abstractmethod
    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return the calibration of one number, a scale, that is fitted to right answers of values `[B, O]`.

        `weights` `[B]` are those of the examples, or None.
        """

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return the class head, one row for each option, that is fitted to features.

        Args:
            features: `[B, d]`, not scaled yet.
            golds: `[B]` right answers.
            fit: how.

        Raises:
            MethodError: the examples are too few for one, or texts share no options.
        """
        raise MethodError(
            f"a class head has a row for each option that all texts share, and answers of kind {self.answers.kind} "
            "have none; use a causal or masked language model and a method that tunes its prompt, such as deep-cue"
        )

    def by_head(self, features: Tensor, head: ClassHead) -> Tensor:
        """Return the values `[..., B, O]` that a class head gives for features `[..., B, d]`."""
        return class_scores(features, head)

    def each_read(self, features: Tensor) -> Tensor:
        """Return what a class head reads of features, a row `[..., d]` for each time that it answers."""
        return features

    def normalised(self, values: Tensor) -> Tensor:
        """Return values `[..., O]` up to what no answer depends on: log-probabilities (nats), float64."""
        return values.double().log_softmax(-1)

    def mixed(self, values: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the values `[B, O]` of prompts that answer together, whose probabilities are averaged.

        Args:
            values: `[T, B, O]` of each prompt, calibrated.
            shares: `[T]` weights of the prompts; None for equal ones.
        """
        logs = values.log_softmax(-1)
        whole: float | Tensor = math.log(len(values))
        if shares is not None:
            logs, whole = logs + shares.log()[:, None, None], shares.sum().log()
        absent = logs.isneginf().all(0)  # options that a text does not have: their gradient would be no number
        found = logs.masked_fill(absent, 0).logsumexp(0) - whole
        return found.masked_fill(absent, -math.inf)

    def flattened(self, values: Tensor) -> Calibration:
        """Return the calibration after which mean answers are uniform over the options; no right answer is used."""
        return calibration.batch(values)

    def alike(self, golds: Sequence[Gold]) -> Tensor:
        """Return how alike the right answers of any two texts are `[B, B]`, 0 to 1; by default whether it is one class.

        Raises:
            MethodError: answers of this kind cannot be compared.
        """
        numbers = torch.tensor(self.answers.class_numbers(golds))
        return (numbers[:, None] == numbers[None]).float()

    def decided(self, values: Tensor, golds: Sequence[Gold]) -> AnswerSpace:
        """Return the answer space with what its decisions take from right answers of held-out values `[B, O]`.

        Thresholds of sets, the margin of intervals; by default nothing (`AnswerSpace.fits_decisions`).
        """
        return self.answers

    def plain(self) -> Calibration:
        """Return the calibration that changes nothing."""
        return Calibration.none(self.answers.size)


@dataclass(frozen=True)
class Score:
    """The mean loss (nats) and the mean primary score over some examples, and the name of that score."""

    loss: float
    primary: float
    measure: str = "accuracy"


@dataclass(frozen=True)
class Scores:
    """How good answers to some examples are.

    Args:
        losses: `[..., B]` (nats), float64.
        primary: `[..., B]` primary scores, float64.
        weights: `[B]` of the examples; None for equal ones.
        measure: the name of the primary score.
    """

    losses: Tensor
    primary: Tensor
    weights: Tensor | None = None
    measure: str = "accuracy"

    @property
    def mean(self) -> Score:
        """The means of losses `[B]` and scores `[B]`."""
        return Score(float(self._mean(self.losses)), float(self._mean(self.primary)), self.measure)

    @property
    def mean_losses(self) -> Tensor:
        """The mean losses `[...]`."""
        return self._mean(self.losses)

    def joined(self, others: Scores) -> Scores:
        """Return the scores of these examples and then of others, all with weights or none."""
        weights = None
        if self.weights is not None and others.weights is not None:
            weights = torch.cat([self.weights, others.weights])
        losses, primary = (
            torch.cat(parts, dim=-1) for parts in ((self.losses, others.losses), (self.primary, others.primary))
        )
        return replace(self, losses=losses, primary=primary, weights=weights)

    def of(self, number: int | list[int]) -> Scores:
        """Return those of one of several prompts, or of some of them."""
        return replace(self, losses=self.losses[number], primary=self.primary[number])

    def _mean(self, values: Tensor) -> Tensor:
        if self.weights is None:
            return values.mean(-1)
        weights = self.weights.to(values)
        return values @ (weights / weights.sum())


@dataclass(frozen=True)
class Golds:
    """Right answers to some examples.

    Args:
        objective: of their answer space.
        values: `[B]` right answers, None where none is known.
        device: where tensors made of them lie.
    """

    objective: Objective
    values: tuple[Gold, ...]
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_known(self) -> bool:
        """Whether every example has one."""
        return all(value is not None for value in self.values)

    @property
    def measure(self) -> str:
        """The name of the score of values."""
        return self.objective.answers.tuning_score

    @property
    def strata(self) -> list[int]:
        """Groups `[B]` that folds, shots and rounds of a search hold in equal shares."""
        return self.objective.answers.strata(self.values)

    @property
    def classes(self) -> Tensor:
        """Class numbers `[B]`, -1 where none is known; raises MethodError where answers are not one class each."""
        return torch.tensor(self.objective.answers.class_numbers(self.values), dtype=torch.long, device=self.device)

    @property
    def alike(self) -> Tensor:
        """How alike the answers of any two texts are `[B, B]`; raises as `Objective.alike`."""
        return self.objective.alike(self.values).to(self.device)

    def select(self, rows: Sequence[int]) -> Golds:
        """Return those of some of the examples."""
        return Golds(self.objective, tuple(self.values[row] for row in rows), self.device)

    def joined(self, other: Golds) -> Golds:
        """Return these and then those of other examples."""
        return Golds(self.objective, self.values + other.values, self.device)

    def losses(self, values: Tensor) -> Tensor:
        """Return the losses `[..., B]` (nats) of values `[..., B, O]`, differentiable."""
        return self.objective.losses(values, self.values)

    @torch.no_grad()
    def scores(self, values: Tensor, weights: Tensor | None = None) -> Scores:
        """Return how good values `[..., B, O]` are, in float64."""
        exact = values.double()
        primary = self.objective.scores(exact, self.values)
        return Scores(self.losses(exact), primary, weights, self.measure)

    def fitted(self, values: Tensor, weights: Tensor | None = None) -> Calibration:
        """Return the calibration fitted to these of values `[B, O]`."""
        return self.objective.fitted(values, self.values, weights)

    def tempered(self, values: Tensor) -> Calibration:
        """Return the temperature fitted to these of values `[B, O]`."""
        return self.objective.tempered(values, self.values)

    def decided(self, values: Tensor) -> Golds:
        """Return these of the answer space whose decisions are fitted to values `[B, O]` (`Objective.decided`)."""
        answers = self.objective.decided(values, self.values)
        return replace(self, objective=type(self.objective)(answers))
