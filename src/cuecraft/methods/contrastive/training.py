"""Contrastive training of a prompt's tensor (offsets, prefix, input embeddings) or of weights, then of class heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import ClassVar, Literal

import torch
from pydantic import Field

from cuecraft.artifact import Calibration
from cuecraft.backbone import FeatureScale
from cuecraft.backbone.columns import class_scores
from cuecraft.core.events import TrainStep
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive.objective import Contrast
from cuecraft.methods.gradients import features_of
from cuecraft.methods.problem import Problem, Selection
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.loop import Latest, LoopOptions, Part, Trainable, train_side_by_side
from cuecraft.methods.train.prefix import PTuningV2
from cuecraft.methods.train.soft import EmbeddingTraining

#: Penalties of class heads on features of unit length, scikit-learn's C.
INVERSE_PENALTIES = (3.0, 10.0, 30.0, 100.0)


class PromptOf(StrEnum):
    """Which tensor of the prompt is trained."""

    DEEP = "deep"  # offsets on every layer, at the positions of words
    PREFIX = "prefix"  # keys and values of every layer
    SOFT = "soft"  # input embeddings


_TRAINED: dict[PromptOf, type[OffsetTraining | EmbeddingTraining | PTuningV2]] = {
    PromptOf.DEEP: OffsetTraining,
    PromptOf.PREFIX: PTuningV2,
    PromptOf.SOFT: EmbeddingTraining,
}


class ContrastiveTraining(LoopOptions):
    """Contrastive training of a prompt, from a given one on; no class head is trained meanwhile.

    Learning rates are in units of the embeddings' RMS; of a prefix, of its first states' in each layer.
    """

    name: ClassVar[str] = "contrastive"

    of: PromptOf = Field(PromptOf.PREFIX, description="what is trained: `deep`, `prefix` or `soft`")
    learning_rate: float = Field(0.05, gt=0, description="AdamW step of the first batch")
    temperature: float = Field(0.1, gt=0, description="of the loss: by which cosines are divided")
    epochs: int = Field(15, ge=1, description="passes over the training examples")
    batch_size: int = Field(48, ge=4, description="training examples of one step, as many of each class")
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="of the learning rate; `linear` lets it fall to zero over all epochs"
    )

    @property
    def title(self) -> str:
        """As shown where several trainings are compared."""
        return f"{self.name} {self.of} {self.learning_rate:g} x {self.epochs}, temperature {self.temperature:g}"

    def trainable(self, problem: Problem, start: Candidate) -> Trainable:
        """Return the tensor of a given prompt, to be trained; step 0 has exactly its features.

        Raises:
            MethodError: the prompt is of another kind.
        """
        return _TRAINED[self.of](learning_rate=self.learning_rate).trainable(problem, start)

    def refine_side_by_side(self, parts: Sequence[tuple[Candidate, Selection]]) -> None:
        """Train from several given prompts side by side, each on its selection's problem."""
        trained = [Part(own.problem, self.trainable(own.problem, start), own) for start, own in parts]
        train_side_by_side(self, trained, Contrast(self.temperature))


class Loss(StrEnum):
    """What a training of weights minimises."""

    CROSS_ENTROPY = "cross-entropy"
    CONTRASTIVE = "contrastive"


def without_head(candidate: Candidate) -> Candidate:
    """Return a candidate that gives features only."""
    plain = Calibration.none(len(candidate.calibration.bias))
    return replace(candidate, prompt=candidate.prompt.with_head(None), calibration=plain)


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
    for step, penalty in enumerate(penalties):
        head = train.fitted_head(own, penalty, FeatureScale.UNIT)
        candidate = replace(trained, prompt=trained.prompt.with_head(head))
        seen = train.scores(class_scores(own, head)).mean
        held_out = None
        if dev is not None and others is not None:
            held_out = dev.scores(class_scores(others, head)).mean
        selection.see(candidate, seen, TrainStep("class head", step, len(penalties)), held_out)
