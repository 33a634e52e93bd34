"""Prompt tuning: trained input embeddings (Lester et al., EMNLP 2021, arXiv 2104.08691)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.backbone import ClassHead, SequenceBackbone
from cuecraft.method import Candidate, Outcome, Problem, Selection, fit_head, score, starting_point
from cuecraft.prompts import SoftPrompt
from cuecraft.tune.initial import Init, initial_vectors
from cuecraft.tune.loop import TrainingOptions, train


class PromptTuning(TrainingOptions):
    """Training of the prompt's input embeddings."""

    name: ClassVar[str] = "prompt-tuning"

    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")
    init: Init | None = Field(None, description="initial vectors; by default text, or vocabulary without words")
    init_text: str | None = Field(None, description="words to start from in place of the template's own")
    learning_rate: float = Field(0.02, gt=0, description="AdamW step, in units of the embeddings' RMS")
    head_learning_rate: float = Field(0.01, gt=0, description="AdamW step of a class head")
    pull: float = Field(0.0, ge=0, description="weight of the mean squared move from the start, in RMS units")

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

    def refine(self, problem: Problem, start: Candidate, selection: Selection) -> None:
        """Train from a given prompt, hard or soft; step 0 has exactly its logits."""
        scale = float(problem.backbone.embedding_matrix().square().mean().sqrt())
        vectors = start.prompt.vectors(problem.backbone.embed)
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # half precision would not train
        trainable = _Vectors(vectors, start.prompt.head, scale, self)
        train(self, problem, trainable, start.calibration, selection)


class _Vectors:
    """A soft prompt in training, and its class head where there is one."""

    def __init__(self, start: Tensor, head: ClassHead | None, scale: float, options: PromptTuning) -> None:
        self.start = start.detach().clone()
        self.vectors = self.start.clone().requires_grad_()
        self.head = head and ClassHead(
            head.weight.detach().clone().requires_grad_(), head.bias.detach().clone().requires_grad_()
        )
        self.scale = scale
        self.options = options

    def groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = [{"params": [self.vectors], "lr": self.options.learning_rate * self.scale}]
        if self.head:
            groups.append({"params": [self.head.weight, self.head.bias], "lr": self.options.head_learning_rate})
        return groups

    def prompt(self) -> SoftPrompt:
        return SoftPrompt(self.vectors, self.head)

    def snapshot(self) -> SoftPrompt:
        head = self.head and ClassHead(self.head.weight.detach().clone(), self.head.bias.detach().clone())
        return SoftPrompt(self.vectors.detach().clone(), head)

    def penalty(self) -> Tensor:
        moved = (self.vectors - self.start) / self.scale
        return self.options.pull * moved.square().mean() if self.options.pull else torch.zeros(())
