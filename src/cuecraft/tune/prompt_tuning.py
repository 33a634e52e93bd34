"""Prompt tuning: trained input embeddings (Lester et al., EMNLP 2021, arXiv 2104.08691).

And P-tuning: the same embeddings, made by a prompt encoder (Liu et al., 2021, arXiv 2103.10385).
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from cuecraft.backbone import HeadKind
from cuecraft.method import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.predictor import Candidate
from cuecraft.prompts import SoftPrompt
from cuecraft.tune.encoder import EncoderKind, PromptEncoder, require_read
from cuecraft.tune.in_context import BehindShots
from cuecraft.tune.initial import Init, initial_vectors
from cuecraft.tune.trainable import PromptTensor, TensorTraining, embedding_scale
from cuecraft.untuned import begin, calibrated, fit_head


class EmbeddingTraining(TensorTraining):
    """Training of the prompt's input embeddings, from a given prompt on."""

    name: ClassVar[str] = "prompt-tuning"
    weighs_examples: ClassVar[bool] = True

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return the embeddings of a given prompt, hard or soft, to be trained; step 0 has exactly its logits."""
        backbone = problem.backbone
        scale = embedding_scale(backbone.embedding_matrix())
        return PromptTensor(start.prompt.vectors(backbone.embed), start, scale, self, SoftPrompt)


class PromptTuning(BehindShots, EmbeddingTraining, Method):
    """Prompt tuning as a method: from initial vectors on."""

    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")
    init: Init | None = Field(None, description="initial vectors; by default text, or vocabulary without words")
    init_text: str | None = Field(None, description="words to start from in place of the template's own")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train from the initial vectors; the best prompt on dev wins, the untuned one included."""
        return self.tuned_behind(problem, self._tuned)

    def _tuned(self, problem: Problem) -> Outcome:
        untuned, selection = begin(problem, self.calibration)
        init = self.init or (Init.TEXT if problem.initial_ids or self.init_text else Init.VOCABULARY)
        vectors = initial_vectors(problem, init, self.prompt_length, self.init_text)
        with problem.in_time():
            head = fit_head(problem, SoftPrompt(vectors)) if problem.backbone.head_kind is HeadKind.SEQUENCE else None
            self.refine(problem, calibrated(problem, SoftPrompt(vectors, head), self.calibration), selection)
        return selection.outcome(untuned)


class PTuning(PromptTuning):
    """P-tuning: prompt tuning through a prompt encoder. The encoder's output is kept, the encoder is not."""

    name: ClassVar[str] = "p-tuning"

    encoder: EncoderKind = Field(EncoderKind.LSTM, description="`lstm` (the paper's, with a perceptron) or `mlp`")
    encoder_width: int = Field(256, ge=1, description="of the encoder's position embeddings and hidden layers")
    encoder_learning_rate: float = Field(1e-3, gt=0, description="AdamW step of the encoder's weights")

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        require_read(self, ["learning_rate"], "an encoder is trained, so give encoder_learning_rate")
        return self

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return an encoder of the prompt's embeddings, to be trained; step 0 has exactly the prompt's logits."""
        backbone = problem.backbone
        vectors = start.prompt.vectors(backbone.embed)
        encoder = PromptEncoder(self.encoder, *(len(vectors), self.encoder_width, vectors.shape[1]), problem.seed)
        scale = embedding_scale(backbone.embedding_matrix())
        rate = self.encoder_learning_rate
        return PromptTensor(vectors, start, scale, self, SoftPrompt, encoder.to(backbone.device), rate)
