"""Straight-through search: forward on the nearest words, backward to continuous copies.

As in PEZ (Wen et al., NeurIPS 2023, arXiv 2302.03668): the continuous copy moves by the gradient taken at its
projection onto the vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from cuecraft.method import (
    CalibrationKind,
    Candidate,
    Event,
    Method,
    Outcome,
    Problem,
    Selection,
    loss_gradient,
    score,
    starting_point,
    trained_copy,
)
from cuecraft.prompts import HardPrompt
from cuecraft.prompts.kinds import nearest_tokens
from cuecraft.search.start import filled_ids
from cuecraft.search.vocabulary import allowed_tokens

PHASE = "straight-through"


class StraightThrough(Method):
    """Gradient descent on continuous copies of the prompt's words."""

    name: ClassVar[str] = "straight-through"

    steps: int = Field(60, ge=1, description="gradient steps over all training examples")
    learning_rate: float = Field(0.2, gt=0, description="AdamW step, in units of the embeddings' RMS")
    prompt_length: int | None = Field(None, ge=1, description="prompt tokens; by default the template's own words")
    calibration: CalibrationKind = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Descend from the template's own words; the best projection on dev wins, the untuned prompt included."""
        backbone = problem.backbone
        untuned = starting_point(problem, problem.initial_ids, self.calibration)
        selection = Selection(problem)
        selection.see(untuned, score(backbone, untuned, problem.train), phase=PHASE, step=0)
        first = starting_point(problem, filled_ids(problem, self.prompt_length), self.calibration)
        assert isinstance(first.prompt, HardPrompt)
        allowed = torch.nonzero(allowed_tokens(backbone, problem.task).to(backbone.device)).flatten()
        words = trained_copy(backbone.embedding_matrix()[allowed])
        free = trained_copy(first.prompt.vectors(backbone.embed))
        rate = self.learning_rate * float(words.square().mean().sqrt())
        optimizer = torch.optim.AdamW([free], lr=rate, weight_decay=0.0)
        ids = first.prompt.token_ids
        seen: set[tuple[int, ...]] = {problem.initial_ids}
        for step in range(1, self.steps + 1):
            if problem.out_of_time():
                break
            current = Candidate(HardPrompt(ids, first.prompt.head), first.calibration)
            found, free.grad = loss_gradient(problem, current, problem.train)
            event: Event = {
                "phase": PHASE,
                "step": step,
                "total": self.steps,
                "prompt": current.prompt.text(backbone.tokenizer),
            }
            if ids not in seen:
                selection.see(current, found, **event)
            else:
                selection.note({**event, "train_loss": found.loss, "train_accuracy": found.accuracy})
            seen.add(ids)
            optimizer.step()
            ids = tuple(allowed[nearest_tokens(free, words)].tolist())
        return selection.outcome(untuned)
