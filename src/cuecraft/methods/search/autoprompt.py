"""AutoPrompt: gradient-guided search for prompt words (Shin et al., EMNLP 2020, arXiv 2010.15980).

Differs from the published code where that is noisy: the gradient of one backward pass is used for every position;
candidates are scored on the same examples as the incumbent, the best of them on all; a swap is taken only if it lowers
that loss; and the untuned prompt competes to the end. Which tokens swaps may bring in is the user's to say, a prompt's
text gives back its tokens, and what is lowered may have a term for how likely the prompt is as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from cuecraft.artifact import HardPrompt, Prompt
from cuecraft.backbone.likelihood import cue_log_likelihood
from cuecraft.core.checkpoints import kept_when_stopped
from cuecraft.core.errors import MethodError
from cuecraft.core.events import SearchStep
from cuecraft.core.seeding import numpy_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import loss_gradient
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import (
    Calibrated,
    CalibrationKind,
    Labelled,
    Method,
    Outcome,
    Problem,
    Selection,
    score,
    with_scores,
)
from cuecraft.methods.search.halving import best_swap, first_order_change, halving_rounds
from cuecraft.methods.search.space import SearchSpace, filled_ids
from cuecraft.methods.search.vocabulary import VocabularyOptions
from cuecraft.methods.untuned import starting_point, untuned_prompt

PHASE = "search"


class _Standing(NamedTuple):
    """A prompt of the search, its score, what is added to its loss, and the position that was swapped last."""

    candidate: Candidate
    score: Score
    penalty: float
    position: int | None = None

    @property
    def objective(self) -> float:
        """What the search lowers."""
        return self.score.loss + self.penalty


@dataclass
class _UnderWay:
    """How far a search has come.

    Args:
        now: the incumbent.
        step: the last step taken.
        tried: positions whose turn brought nothing since the last accepted swap.
    """

    now: _Standing
    step: int = 0
    tried: set[int] = field(default_factory=set)

    def document(self, selection: Selection, untuned: Candidate) -> dict[str, Any]:
        """Return it JSON-ready, with what the selection has seen; the calibration is the start's throughout."""
        now, best = self.now, selection.best
        return {
            "step": self.step,
            "tried": sorted(self.tried),
            "token_ids": _hard(now.candidate).token_ids,
            "score": list(astuple(now.score)),
            "penalty": now.penalty,
            "position": now.position,
            "best": None if best is None or best is untuned else _hard(best).token_ids,
            "selection": selection.state(),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any], selection: Selection, untuned: Candidate, start: Candidate) -> _UnderWay:
        """Return what a document tells, and let the selection know what it had seen.

        Args:
            document: what was kept.
            selection: a new one.
            untuned: the untuned prompt.
            start: where the search began.
        """
        best = document["best"]
        selection.restore(document["selection"], untuned if best is None else _with_words(start, best))
        candidate = _with_words(start, document["token_ids"])
        standing = _Standing(candidate, Score(*document["score"]), document["penalty"], document["position"])
        return cls(standing, document["step"], set(document["tried"]))


class AutoPrompt(Method):
    """Discrete search for the words of the prompt."""

    name: ClassVar[str] = "autoprompt"
    weighs_examples: ClassVar[bool] = True

    steps: int = Field(24, ge=1, description="search steps; each tries `candidates` swaps")
    candidates: int = Field(24, ge=1, description="swaps tried in full at each step")
    positions: Literal["one", "all"] = Field("one", description="positions that one step may swap")
    scoring: Literal["halving", "exact"] = Field(
        "halving", description="`halving` drops the worse half of the swaps on few examples; `exact` scores all on all"
    )
    prompt_length: int | None = Field(None, ge=1, description="trigger tokens; by default the template's own words")
    search_examples: int = Field(128, ge=2, description="training examples that swaps are scored on, at most")
    vocabulary: VocabularyOptions = Field(default_factory=VocabularyOptions, description="words that may be used")
    round_trip: bool = Field(
        True, description="only prompts whose text, written into the template, gives back the same tokens"
    )
    fluency: float = Field(
        0.0, ge=0, description="weight of the prompt's own mean log-likelihood for a token (nats), added to the loss"
    )
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Search from the template's own words; the best prompt on dev wins, the untuned one included.

        Raises:
            MethodError: too few tokens are allowed, or `fluency` was asked of a model without a language head.
        """
        return self.from_words(problem, filled_ids(problem, self.prompt_length))

    def from_words(self, problem: Problem, token_ids: tuple[int, ...]) -> Outcome:
        """Search from some words; the best prompt on dev wins, the untuned one included.

        Where filters of the vocabulary were asked for, or the words' text does not give back their tokens, each word
        that may not stay is first replaced by the allowed one nearest to it, and the search goes on from there. The
        untuned prompt competes as the user wrote it.

        Args:
            problem: the problem.
            token_ids: where the search begins.

        Raises:
            MethodError: as `fit`.
        """
        if self.fluency and not problem.backbone.has_words:
            raise MethodError(
                f"fluency needs a causal or masked language model, but {problem.backbone.name} gives words no "
                "probability; give fluency=0 or another head"
            )
        space = SearchSpace.of(problem, self.vocabulary, self.round_trip)
        untuned, _ = untuned_prompt(problem, self.calibration)
        selection = Selection(problem)
        with problem.in_time():
            self._search(problem, space, untuned, token_ids, selection)
        return selection.outcome(untuned)

    def _search(
        self,
        problem: Problem,
        space: SearchSpace,
        untuned: Candidate,
        token_ids: tuple[int, ...],
        selection: Selection,
    ) -> None:
        """Search, from the state on disk where there is one."""
        ids = space.start(token_ids)
        current = untuned if ids == problem.initial_ids else starting_point(problem, ids, self.calibration)
        data = _search_data(problem, self.search_examples)
        slot = problem.slot(self.name)
        state = slot.load()
        if state is not None:
            under_way = _UnderWay.of(state[0], selection, untuned, current)
        else:
            event = SearchStep(PHASE, 0, vocabulary=space.vocabulary.report())
            for begin in dict.fromkeys((untuned, current)):
                found = score(problem.backbone, begin, data)
                selection.see(begin, found, _showing(event, problem, begin))
                event = replace(event, vocabulary=None)
            under_way = _UnderWay(_Standing(current, found, self._penalties(problem, [ids])[0]))

        with kept_when_stopped(lambda: slot.save(under_way.document(selection, untuned), {})):
            for _ in self._walk(problem, under_way, data, space, selection):
                if slot.due():
                    slot.save(under_way.document(selection, untuned), {})
        slot.save(under_way.document(selection, untuned), {})

    def _walk(
        self, problem: Problem, search: _UnderWay, data: Labelled, space: SearchSpace, selection: Selection
    ) -> Iterator[int]:
        """Take swaps that lower the objective until steps or time are over, or no position has one that does."""
        while search.step < self.steps:
            now = search.now
            if problem.out_of_time() or len(search.tried) == len(now.candidate.prompt):
                break
            search.step += 1
            event = SearchStep(PHASE, search.step, self.steps, accepted=False)
            positions = self._positions(problem, now.candidate, search.step)
            found = self._step(problem, now.candidate, data, space, positions, search.step)
            search.tried |= set(positions)
            if found is not None and found.objective < now.objective:
                search.now, search.tried = found, set()
                likelihood = -found.penalty / self.fluency if self.fluency else None
                event = replace(event, accepted=True, position=found.position, log_likelihood=likelihood)
                selection.see(found.candidate, found.score, _showing(event, problem, found.candidate))
            else:
                selection.note(with_scores(event, now.score))
            yield search.step

    def _positions(self, problem: Problem, current: Candidate, step: int) -> list[int]:
        """Return the positions that a step may swap."""
        length = len(current.prompt)
        return [_turn(problem.seed, length, step)] if self.positions == "one" else list(range(length))

    def _step(
        self,
        problem: Problem,
        current: Candidate,
        data: Labelled,
        space: SearchSpace,
        positions: Sequence[int],
        step: int,
    ) -> _Standing | None:
        """Return the prompt with the best swap of one step; None where no swap leads to a prompt that may be taken."""
        backbone, prompt = problem.backbone, _hard(current)
        _, gradient = loss_gradient(problem, current, data)
        vectors = prompt.vectors(backbone.embed)
        change = first_order_change(gradient, vectors, backbone.embedding_matrix())
        change.scatter_(1, torch.tensor(prompt.token_ids, device=change.device)[:, None], torch.inf)
        swaps = space.swaps(prompt.token_ids, change, positions, self.candidates)
        if not swaps:
            return None
        rounds = [list(range(len(data)))]
        if self.scoring == "halving":
            rounds = halving_rounds(data.golds.strata, numpy_generator(problem.seed, f"search-rounds/{step}"))
        found = self._penalties(problem, [prompt.swapped(*swap).token_ids for swap in swaps])
        penalties = dict(zip(swaps, found, strict=True))
        swap, best = best_swap(backbone, current, data, swaps, rounds, penalties if self.fluency else {})
        return _Standing(_swapped(current, swap), best, penalties[swap], swap[0])

    def _penalties(self, problem: Problem, cues: Sequence[tuple[int, ...]]) -> list[float]:
        """Return what is added to the loss of each prompt: the less likely it is as text, the more."""
        if not self.fluency:
            return [0.0] * len(cues)
        found: list[float] = (-self.fluency * cue_log_likelihood(problem.backbone, cues).double()).tolist()
        return found


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


def _hard(candidate: Candidate) -> Prompt:
    assert candidate.prompt.kind == "hard"
    return candidate.prompt


def _with_words(start: Candidate, token_ids: Sequence[int]) -> Candidate:
    """Return other words with a candidate's calibration and class head."""
    return Candidate(HardPrompt(tuple(token_ids), start.prompt.head), start.calibration)


def _swapped(current: Candidate, swap: tuple[int, int]) -> Candidate:
    return Candidate(_hard(current).swapped(*swap), current.calibration)


def _showing(event: SearchStep, problem: Problem, candidate: Candidate) -> SearchStep:
    """Return an event with a prompt's ids and text in it."""
    prompt = _hard(candidate)
    return replace(event, token_ids=list(prompt.token_ids), prompt=prompt.text(problem.backbone.tokenizer))
