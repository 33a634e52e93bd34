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
from cuecraft.search.space import SearchSpace
from cuecraft.search.start import filled_ids
from cuecraft.search.vocabulary import VocabularyOptions

PHASE = "straight-through"


class StraightThrough(Method):
    """Gradient descent on continuous copies of the prompt's words."""

    name: ClassVar[str] = "straight-through"

    steps: int = Field(60, ge=1, description="gradient steps over all training examples")
    learning_rate: float = Field(0.2, gt=0, description="AdamW step, in units of the embeddings' RMS")
    prompt_length: int | None = Field(None, ge=1, description="prompt tokens; by default the template's own words")
    vocabulary: VocabularyOptions = Field(default_factory=VocabularyOptions, description="words that may be used")
    round_trip: bool = Field(
        True, description="only prompts whose text, written into the template, gives back the same tokens"
    )
    calibration: CalibrationKind = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Descend from the template's own words; the best projection on dev wins, the untuned prompt included.

        Every projection is of allowed tokens; words of the template that may not stay, for a filter that was asked
        for or because their text does not give them back, are first replaced by the nearest allowed ones.

        Raises:
            MethodError: too few tokens are allowed.
        """
        backbone = problem.backbone
        space = SearchSpace.of(problem, self.vocabulary, self.round_trip)
        untuned = starting_point(problem, problem.initial_ids, self.calibration)
        selection = Selection(problem)
        begin: Event = {"phase": PHASE, "step": 0, "vocabulary": space.vocabulary.report()}
        selection.see(untuned, score(backbone, untuned, problem.train), **begin)
        first = starting_point(problem, space.start(filled_ids(problem, self.prompt_length)), self.calibration)
        assert isinstance(first.prompt, HardPrompt)
        free = trained_copy(first.prompt.vectors(backbone.embed))
        rate = self.learning_rate * float(space.words.square().mean().sqrt())
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
                "token_ids": list(ids),
                "prompt": current.prompt.text(backbone.tokenizer),
            }
            if ids not in seen:
                selection.see(current, found, **event)
            else:
                selection.note({**event, "train_loss": found.loss, "train_accuracy": found.accuracy})
            seen.add(ids)
            optimizer.step()
            ids = space.nearest(free.detach())
        return selection.outcome(untuned)
