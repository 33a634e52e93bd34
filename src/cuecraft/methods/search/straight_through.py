"""Straight-through search: forward on the nearest words, backward to continuous copies.

As in PEZ (Wen et al., NeurIPS 2023, arXiv 2302.03668): the continuous copy moves by the gradient taken at its
projection onto the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import HardPrompt
from cuecraft.core.checkpoints import kept_when_stopped
from cuecraft.core.events import SearchStep
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import loss_gradient, trained_copy
from cuecraft.methods.problem import (
    Calibrated,
    CalibrationKind,
    Method,
    Outcome,
    Problem,
    Selection,
    score,
    with_scores,
)
from cuecraft.methods.search.space import SearchSpace, filled_ids
from cuecraft.methods.search.vocabulary import VocabularyOptions
from cuecraft.methods.untuned import starting_point, untuned_prompt

PHASE = "straight-through"


class StraightThrough(Method):
    """Gradient descent on continuous copies of the prompt's words."""

    name: ClassVar[str] = "straight-through"
    weighs_examples: ClassVar[bool] = True

    steps: int = Field(60, ge=1, description="gradient steps over all training examples")
    learning_rate: float = Field(0.2, gt=0, description="AdamW step, in units of the embeddings' RMS")
    prompt_length: int | None = Field(None, ge=1, description="prompt tokens; by default the template's own words")
    vocabulary: VocabularyOptions = Field(default_factory=VocabularyOptions, description="words that may be used")
    round_trip: bool = Field(
        True, description="only prompts whose text, written into the template, gives back the same tokens"
    )
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Descend from the template's own words; the best projection on dev wins, the untuned prompt included.

        Every projection is of allowed tokens; words of the template that may not stay, for a filter that was asked
        for or because their text does not give them back, are first replaced by the nearest allowed ones.

        Raises:
            MethodError: too few tokens are allowed.
        """
        space = SearchSpace.of(problem, self.vocabulary, self.round_trip)
        untuned, _ = untuned_prompt(problem, self.calibration)
        selection = Selection(problem)
        with problem.in_time():
            self._descend(problem, space, untuned, selection)
        return selection.outcome(untuned)

    def _descend(self, problem: Problem, space: SearchSpace, untuned: Candidate, selection: Selection) -> None:
        """Descend, from the state on disk where there is one."""
        first = starting_point(problem, space.start(filled_ids(problem, self.prompt_length)), self.calibration)
        descent = _Descent(selection, self, space, untuned, first)
        slot = problem.slot(self.name)
        state = slot.load()
        if state is not None:
            descent.restore(*state)
        else:
            begin = SearchStep(PHASE, 0, vocabulary=space.vocabulary.report())
            selection.see(untuned, score(problem.backbone, untuned, problem.train), begin)
        with kept_when_stopped(lambda: slot.save(*descent.state())):
            while descent.done < self.steps and not problem.out_of_time():
                descent.step()
                if slot.due():
                    slot.save(*descent.state())
        slot.save(*descent.state())


class _Descent:
    """A search in progress: continuous copies of the words, their optimizer, and the words that were seen.

    Args:
        selection: keeps the best words of its problem.
        options: of the search.
        space: the words that may be used.
        untuned: the untuned prompt.
        first: the words that it begins with.
    """

    def __init__(
        self, selection: Selection, options: StraightThrough, space: SearchSpace, untuned: Candidate, first: Candidate
    ) -> None:
        assert first.prompt.kind == "hard"
        problem = self._problem = selection.problem
        self._space, self._total = space, options.steps
        self._untuned, self._first = untuned, first
        self._free = trained_copy(first.prompt.vectors(problem.backbone.embed))
        rate = options.learning_rate * float(space.words.square().mean().sqrt())
        self._optimizer = torch.optim.AdamW([self._free], lr=rate, weight_decay=0.0)
        self._ids = first.prompt.token_ids
        self._seen: set[tuple[int, ...]] = {problem.initial_ids}
        self.selection = selection
        self.done = 0

    def step(self) -> None:
        """See the projection, and move the copies by its gradient."""
        self.done += 1
        problem, ids = self._problem, self._ids
        current = self._with_words(ids)
        found, self._free.grad = loss_gradient(problem, current, problem.train)
        text = current.prompt.text(problem.backbone.tokenizer)
        step = SearchStep(PHASE, self.done, self._total, token_ids=list(ids), prompt=text)
        if ids not in self._seen:
            self.selection.see(current, found, step)
        else:
            self.selection.note(with_scores(step, found))
        self._seen.add(ids)
        self._optimizer.step()
        self._ids = self._space.nearest(self._free.detach())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return how far it has come: a JSON-ready document, and tensors."""
        best = self.selection.best
        is_untuned = best is None or best is self._untuned
        document = {
            "step": self.done,
            "token_ids": self._ids,
            "seen": sorted(self._seen),
            "best": None if is_untuned else list(_words(best)),
            "selection": self.selection.state(),
        }
        moments = self._optimizer.state_dict()["state"].get(0, {})
        return document, {"free": self._free, **{f"adamw/{name}": value for name, value in moments.items()}}

    @torch.no_grad()
    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.done, self._ids = document["step"], tuple(document["token_ids"])
        self._seen = {tuple(ids) for ids in document["seen"]}
        best = self._untuned if document["best"] is None else self._with_words(document["best"])
        self.selection.restore(document["selection"], best)
        self._free.copy_(tensors["free"])
        moments = {name.removeprefix("adamw/"): tensors[name] for name in tensors if name.startswith("adamw/")}
        state = {0: moments} if moments else {}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})

    def _with_words(self, ids: Sequence[int]) -> Candidate:
        return Candidate(HardPrompt(tuple(ids), self._first.prompt.head), self._first.calibration)


def _words(candidate: Candidate | None) -> tuple[int, ...]:
    assert candidate is not None
    assert candidate.prompt.kind == "hard"
    return candidate.prompt.token_ids
