"""Fine-tuning baselines: LoRA, LoRA together with a prompt, and all weights, in the same training loop.

They answer through the same template, label words and calibration as the prompt methods, from the same start, and stop
by the same rule.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cuecraft.backbone.weights import FullSpec, LoraSpec, TunedWeights, Twin
from cuecraft.gradients import trained_copy
from cuecraft.method import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.predictor import Candidate
from cuecraft.prompts import SoftPrompt
from cuecraft.search.start import filled_start
from cuecraft.tune.contrastive.weights import Loss, train_then_fit_heads, without_head
from cuecraft.tune.encoder import require_read
from cuecraft.tune.loop import TrainingOptions, train
from cuecraft.tune.trainable import TrainedHead, embedding_scale
from cuecraft.untuned import begin


class TrainedWeights:
    """A twin's weights in training, with a class head where there is one, and the prompt's vectors if asked for.

    Args:
        twin: the weights.
        first: the candidate at step 0.
        learning_rate: AdamW step of the weights.
        head_learning_rate: AdamW step of a class head.
        vectors: the prompt's vectors `[S, d]` to be trained too, and their AdamW step; None to leave the prompt alone.
    """

    def __init__(
        self,
        twin: Twin,
        first: Candidate,
        learning_rate: float,
        head_learning_rate: float,
        vectors: tuple[Tensor, float] | None = None,
    ) -> None:
        self._live = TunedWeights(twin)
        self._first = first
        self._head = TrainedHead(first.prompt.head, head_learning_rate)
        self._groups: list[dict[str, Any]] = [{"params": list(twin.trained.values()), "lr": learning_rate}]
        self._vectors = None
        if vectors is not None:
            self._vectors = trained_copy(vectors[0]).requires_grad_()
            self._groups.append({"params": [self._vectors], "lr": vectors[1]})

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups."""
        return [*self._groups, *self._head.groups()]

    def candidate(self) -> Candidate:
        """Return the candidate as a differentiable function of the trained tensors."""
        prompt = self._first.prompt if self._vectors is None else SoftPrompt(self._vectors)
        return Candidate(self._head.on(prompt), self._first.calibration, self._live)

    def snapshot(self) -> Candidate:
        """Return the candidate as it is now, independent of further training."""
        prompt = self._first.prompt if self._vectors is None else SoftPrompt(self._vectors.detach().clone())
        return Candidate(self._head.frozen_on(prompt), self._first.calibration, self._live.snapshot())

    def penalty(self) -> Tensor:
        """Return nothing: weights are not pulled anywhere."""
        return torch.zeros(())


class WeightTraining(TrainingOptions, Method):
    """Training of a twin's weights from the untuned prompt on."""

    weighs_examples: ClassVar[bool] = True

    learning_rate: float = Field(gt=0, description="AdamW step of the weights")
    head_learning_rate: float = Field(0.01, gt=0, description="AdamW step of a class head")
    loss: Loss = Field(
        Loss.CROSS_ENTROPY, description="`cross-entropy` of the answers, or `contrastive` and then a fitted class head"
    )
    temperature: float = Field(0.1, gt=0, description="of the contrastive loss")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train from the untuned prompt on; the best on dev wins, the untuned prompt included."""
        untuned, selection = begin(problem, self.calibration)
        twin = Twin(problem.backbone, self._spec(), problem.seed)
        with problem.in_time():
            if self.loss is Loss.CONTRASTIVE:
                trainable = self._trainable(problem, without_head(untuned), twin)
                train_then_fit_heads(self, problem, trainable, selection, self.temperature)
            else:
                train(self, problem, self._trainable(problem, untuned, twin), selection)
        return selection.outcome(untuned)

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        if self.loss is Loss.CONTRASTIVE:
            unread = ["head_learning_rate", "patience"]
            require_read(self, unread, "loss=contrastive trains to the last epoch and fits the class head then")
        else:
            require_read(self, ["temperature"], "it is of loss=contrastive")
        return self

    @abstractmethod
    def _spec(self) -> LoraSpec | FullSpec:
        """Return which weights are trained."""

    def _trainable(self, problem: Problem, untuned: Candidate, twin: Twin) -> TrainedWeights:
        """Return what is trained."""
        return TrainedWeights(twin, untuned, self.learning_rate, self.head_learning_rate)


class LoraTuning(WeightTraining):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), through PEFT."""

    name: ClassVar[str] = "lora"

    learning_rate: float = Field(5e-4, gt=0, description="AdamW step of the adapters")
    rank: int = Field(8, ge=1, description="of the adapters")
    alpha: float = Field(16.0, gt=0, description="adapters count alpha / rank times")
    targets: tuple[str, ...] | None = Field(
        None, description="endings of linear layers' names; by default PEFT's choice for the architecture"
    )

    def _spec(self) -> LoraSpec:
        return LoraSpec(rank=self.rank, alpha=self.alpha, targets=self.targets)


class LoraWithPrompt(LoraTuning):
    """LoRA and the prompt's own embeddings, trained together."""

    name: ClassVar[str] = "lora-prompt"

    prompt_learning_rate: float = Field(0.02, gt=0, description="AdamW step of the prompt, in the embeddings' RMS")
    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")

    def _trainable(self, problem: Problem, untuned: Candidate, twin: Twin) -> TrainedWeights:
        backbone = problem.backbone
        first = filled_start(problem, untuned, self.prompt_length, self.calibration)
        step = self.prompt_learning_rate * embedding_scale(backbone.embedding_matrix())
        vectors = (first.prompt.vectors(backbone.embed), step)
        return TrainedWeights(twin, first, self.learning_rate, self.head_learning_rate, vectors)


class FullFineTuning(WeightTraining):
    """All weights, with the prompt in words as it is."""

    name: ClassVar[str] = "full"

    learning_rate: float = Field(1e-5, gt=0, description="AdamW step of the weights")

    def _spec(self) -> FullSpec:
        return FullSpec()
