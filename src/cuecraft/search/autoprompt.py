"""AutoPrompt: gradient-guided search for prompt words (Shin et al., EMNLP 2020, arXiv 2010.15980).

Differs from the published code where that is noisy: the gradient of one backward pass is used for every position;
candidates are scored on the same examples as the incumbent, the best of them on all; a swap is taken only if it lowers
that loss; and the prompt that the search began with competes to the end.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.method import (
    CalibrationKind,
    Candidate,
    Labelled,
    Method,
    Outcome,
    Problem,
    Score,
    Selection,
    loss_gradient,
    score,
    starting_point,
)
from cuecraft.prompts import HardPrompt
from cuecraft.search.elimination import best_swap, halving_rounds
from cuecraft.search.hotflip import best_swaps, best_tokens, first_order_change
from cuecraft.search.start import filled_ids
from cuecraft.search.vocabulary import allowed_tokens
from cuecraft.seeding import numpy_generator

PHASE = "search"


class AutoPrompt(Method):
    """Discrete search for the words of the prompt."""

    name: ClassVar[str] = "autoprompt"

    steps: int = Field(24, ge=1, description="search steps; each tries `candidates` swaps")
    candidates: int = Field(24, ge=1, description="swaps tried in full at each step")
    positions: Literal["one", "all"] = Field("one", description="positions that one step may swap")
    scoring: Literal["halving", "exact"] = Field(
        "halving", description="`halving` drops the worse half of the swaps on few examples; `exact` scores all on all"
    )
    prompt_length: int | None = Field(None, ge=1, description="trigger tokens; by default the template's own words")
    search_examples: int = Field(128, ge=2, description="training examples that swaps are scored on, at most")
    calibration: CalibrationKind = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Search from the template's own words; the best prompt on dev wins, the untuned one included."""
        untuned = starting_point(problem, problem.initial_ids, self.calibration)
        selection = Selection(problem)
        data = _search_data(problem, self.search_examples)
        current = self._first(problem, untuned)
        for begin in dict.fromkeys((untuned, current)):
            incumbent = score(problem.backbone, begin, data)
            selection.see(begin, incumbent, phase=PHASE, step=0, prompt=_text(problem, begin))
        allowed = allowed_tokens(problem.backbone, problem.task)
        tried: set[int] = set()  # positions whose turn brought nothing since the last accepted swap
        for step in range(1, self.steps + 1):
            if problem.out_of_time() or len(tried) == len(current.prompt):
                break
            swap, found = self._step(problem, current, data, allowed, step)
            tried |= {swap[0]} if self.positions == "one" else set(range(len(current.prompt)))
            if found.loss < incumbent.loss:
                current, incumbent, tried = _swapped(current, swap), found, set()
                selection.see(
                    current,
                    found,
                    phase=PHASE,
                    step=step,
                    total=self.steps,
                    accepted=True,
                    position=swap[0],
                    token_ids=list(_hard(current).token_ids),
                    prompt=_text(problem, current),
                )
            else:
                selection.note(
                    {
                        "phase": PHASE,
                        "step": step,
                        "total": self.steps,
                        "accepted": False,
                        "train_loss": incumbent.loss,
                        "train_accuracy": incumbent.accuracy,
                    }
                )
        return selection.outcome(untuned)

    def _first(self, problem: Problem, untuned: Candidate) -> Candidate:
        """Return where the search begins: the untuned words, made as long as asked for."""
        ids = filled_ids(problem, self.prompt_length)
        if ids == problem.initial_ids:
            return untuned
        return starting_point(problem, ids, self.calibration)

    def _step(
        self, problem: Problem, current: Candidate, data: Labelled, allowed: Tensor, step: int
    ) -> tuple[tuple[int, int], Score]:
        """Return the best swap (position, token) of one step and its score on the same examples."""
        backbone, prompt = problem.backbone, _hard(current)
        _, gradient = loss_gradient(problem, current, data)
        vectors = prompt.vectors(backbone.embed)
        change = first_order_change(gradient, vectors, backbone.embedding_matrix())
        change.scatter_(1, torch.tensor(prompt.token_ids, device=change.device)[:, None], torch.inf)
        if self.positions == "one":
            position = _turn(problem.seed, len(prompt), step)
            swaps = [(position, token) for token in best_tokens(change[position], allowed, self.candidates)]
        else:
            swaps = best_swaps(change, allowed, self.candidates)
        rounds = [list(range(len(data)))]
        if self.scoring == "halving":
            rounds = halving_rounds(data.labels.tolist(), numpy_generator(problem.seed, f"search-rounds/{step}"))
        return best_swap(backbone, current, data, swaps, rounds)


def _search_data(problem: Problem, size: int) -> Labelled:
    """Return the examples that every swap of the search is scored on: all, or one sample drawn once."""
    if len(problem.train) <= size:
        return problem.train
    rows = numpy_generator(problem.seed, "search-examples").permutation(len(problem.train))[:size]
    return problem.train.select(sorted(rows.tolist()))


def _turn(seed: int, length: int, step: int) -> int:
    """Return the position whose turn it is: every sweep visits all positions in a fresh random order."""
    sweep, place = divmod(step - 1, length)
    return int(numpy_generator(seed, f"search-order/{sweep}").permutation(length)[place])


def _hard(candidate: Candidate) -> HardPrompt:
    assert isinstance(candidate.prompt, HardPrompt)
    return candidate.prompt


def _swapped(current: Candidate, swap: tuple[int, int]) -> Candidate:
    return Candidate(_hard(current).swapped(*swap), current.calibration)


def _text(problem: Problem, candidate: Candidate) -> str:
    return candidate.prompt.text(problem.backbone.tokenizer)
