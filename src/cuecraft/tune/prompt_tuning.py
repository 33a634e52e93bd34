"""Prompt tuning: trained input embeddings (Lester et al., EMNLP 2021, arXiv 2104.08691)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cuecraft.backbone import SequenceBackbone
from cuecraft.method import (
    CalibrationKind,
    Candidate,
    Method,
    Outcome,
    Problem,
    Selection,
    fit_head,
    score,
    starting_point,
)
from cuecraft.prompts import SoftPrompt
from cuecraft.tune.initial import Init, initial_vectors
from cuecraft.tune.loop import train
from cuecraft.tune.trainable import PromptTensor, TensorOptions, embedding_scale


class EmbeddingTraining(TensorOptions):
    """Training of the prompt's input embeddings, from a given prompt on."""

    name: ClassVar[str] = "prompt-tuning"

    def refine(self, problem: Problem, start: Candidate, selection: Selection) -> None:
        """Train from a given prompt, hard or soft; step 0 has exactly its logits."""
        backbone, prompt = problem.backbone, start.prompt
        scale = embedding_scale(backbone.embedding_matrix())
        trainable = PromptTensor(prompt.vectors(backbone.embed), prompt.head, scale, self, SoftPrompt)
        train(self, problem, trainable, start.calibration, selection)


class PromptTuning(EmbeddingTraining, Method):
    """Prompt tuning as a method: from initial vectors on."""

    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")
    init: Init | None = Field(None, description="initial vectors; by default text, or vocabulary without words")
    init_text: str | None = Field(None, description="words to start from in place of the template's own")
    calibration: CalibrationKind = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train from the initial vectors; the best prompt on dev wins, the untuned one included."""
        untuned = starting_point(problem, problem.initial_ids, self.calibration)
        selection = Selection(problem)
        selection.see(untuned, score(problem.backbone, untuned, problem.train), phase="untuned", step=0)
        init = self.init or (Init.TEXT if problem.initial_ids or self.init_text else Init.VOCABULARY)
        vectors = initial_vectors(problem, init, self.prompt_length, self.init_text)
        head = None
        if isinstance(problem.backbone, SequenceBackbone):
            head = fit_head(problem, SoftPrompt(vectors))
        self.refine(problem, Candidate(SoftPrompt(vectors, head), untuned.calibration), selection)
        return selection.outcome(untuned)
