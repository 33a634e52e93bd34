"""Contrastive training of a tensor of the prompt: of offsets on every layer, of a prefix, or of input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from cuecraft.method import Problem, Selection
from cuecraft.predictor import Candidate
from cuecraft.tune.contrastive.objective import Contrast
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.loop import LoopOptions, Part, Trainable, train_side_by_side
from cuecraft.tune.prefix_tuning import PTuningV2
from cuecraft.tune.prompt_tuning import EmbeddingTraining


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
