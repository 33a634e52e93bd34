"""What can be had without training: calibrations of the untuned prompt, hand-written words, other label words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from cuecraft.artifact import HardPrompt
from cuecraft.core.events import Document
from cuecraft.methods.auto.crossfit import tokens_of
from cuecraft.methods.auto.plans import AutoPlan
from cuecraft.methods.auto.starts import GivenWords, SearchedWords, Start, Words
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Tried
from cuecraft.methods.held_out import (
    Fold,
    HeldOut,
    few_examples,
    fold_problem,
    gather,
    held_out_values,
    untuned_answers,
)
from cuecraft.methods.problem import CalibrationKind, Labelled, Problem, held_out_step, note
from cuecraft.methods.search.label_free.pool import guess_task_type, shipped_cues, tokenised
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.search.space import filled_ids, filler_ids
from cuecraft.methods.untuned import starting_point
from cuecraft.task import MaskSlot, PromptSlot

_LONGEST_CUE = 12  # tokens: a training costs as much as its prompt is long
_SCREENED = 96  # examples that hand-written words are tried on
_TOGETHER = 4  # starting words that are read together, between two looks at the clock
_CLEAR = 0.05  # p-value below which words are clearly better

#: The cheapest first.
_CALIBRATIONS = {
    "zero-shot": CalibrationKind.NONE,
    "contextual calibration": CalibrationKind.CONTEXTUAL,
    "batch calibration": CalibrationKind.BATCH,
    "calibrated": CalibrationKind.FITTED,
}


class Untrained:
    """What was measured without training.

    Args:
        problem: what is solved.
        pool: all labelled examples.
        folds: which of them are held out in turn.
        plan: how much is tried.
    """

    def __init__(self, problem: Problem, pool: Labelled, folds: Sequence[Fold], plan: AutoPlan) -> None:
        self._problem = problem
        self._pool = pool
        self._folds = folds
        self._plan = plan
        self._answers: dict[str, HeldOut] = {}
        self.pace = 0.0  # seconds that a pass over all examples takes, for each token that it reads of one
        self.tried: list[Tried] = []
        self.trace: list[Document] = []

    @property
    def best(self) -> HeldOut:
        """What the untuned prompt answers with the calibration of least held-out loss."""
        return min(self._answers.values(), key=lambda found: found.score.loss)

    @property
    def accuracies(self) -> dict[str, float]:
        """Held-out score of the untuned prompt by calibration, the cheapest first."""
        return {name: found.score.primary for name, found in self._answers.items()}

    @property
    def _whole(self) -> Problem:
        """The problem with all labelled examples to learn from."""
        return replace(self._problem, train=self._pool, dev=None)

    @property
    def filler(self) -> tuple[int, ...]:
        """Token ids that make a prompt longer."""
        return filler_ids(self._problem)

    def measure(self) -> Candidate | None:
        """Measure the untuned prompt; return it with its best calibration, fitted to all examples.

        None where the time ends before that.
        """
        with self._problem.in_time():
            return self._measured()
        return None

    def _measured(self) -> Candidate:
        ids = self._problem.initial_ids
        begun = time.perf_counter()
        answers = untuned_answers(self._problem, self._pool, [HardPrompt(ids)], self._folds)
        self.pace = (time.perf_counter() - begun) / tokens_of(self._pool, len(ids))
        if self._problem.backbone.has_words:
            known = self._problem.task.answers.calibrations
            kinds = {name: kind for name, kind in _CALIBRATIONS.items() if kind in known}
        else:
            kinds = {"untuned, its class head fitted": CalibrationKind.NONE}
        seed = self._problem.seed
        self._answers = {name: answers(0, kind).cross_decided(seed) for name, kind in kinds.items()}
        seconds = (time.perf_counter() - begun) / len(self._answers)
        for name, found in self._answers.items():
            self._note(name, found, seconds)
        kind = next(kinds[name] for name, found in self._answers.items() if found is self.best)
        return starting_point(self._whole, ids, kind)

    @property
    def own(self) -> Words:
        """The template's own words, with the task's own label words."""
        return Words("own words", GivenWords(), filled_ids(self._problem, None), differs=False)

    def starts(self) -> list[Words]:
        """Return starting words, the most promising first: the template's own, unless others are clearly better."""
        starts = [self.own]
        if self._takes_cues() and not self._problem.out_of_time():
            starts = self._screened([*starts, *self._cues(starts[0])])
        if self._plan.searches_words and self._problem.backbone.has_words and not self._problem.out_of_time():
            with self._problem.in_time():  # where the time ends, the words that were screened are there
                starts = self._with_label_words(starts)
        return starts

    def _takes_cues(self) -> bool:
        """Return whether the words in the prompt slot lead to the answer, as hand-written cues do."""
        pieces = self._problem.task.template.pieces
        at = next(n for n, piece in enumerate(pieces) if isinstance(piece, PromptSlot))
        is_last = at + 1 == len(pieces) or isinstance(pieces[at + 1], MaskSlot)
        return self._problem.backbone.has_words and self._problem.task.has_labels and at > 0 and is_last

    def _cues(self, own: Words) -> list[Words]:
        problem = self._problem
        verbalizer = problem.task.verbalizer
        cues = shipped_cues(guess_task_type(verbalizer), verbalizer, 0, problem.seed)
        if problem.task.template.begins_turn:
            cues = [cue.lstrip() for cue in cues]
        found = tokenised(problem.backbone.tokenizer, cues)
        fitting = {ids: cue for ids, cue in found.items() if len(ids) <= _LONGEST_CUE and ids != own.token_ids}
        return [Words(repr(cue), GivenWords(), ids, differs=True) for ids, cue in fitting.items()][: self._plan.cues]

    def _screened(self, starts: Sequence[Words]) -> list[Words]:
        """Order starting words, the own ones first among them, by their calibrated answers to some of the examples."""
        some, folds = few_examples(self._problem, self._pool, _SCREENED, len(self._folds))
        some, folds = (some, folds) if folds else (self._pool, list(self._folds))
        found: list[HeldOut] = []
        taken = 0.0
        for first in range(0, len(starts), _TOGETHER):
            if found and self._problem.out_of_time(2 * taken):
                break  # what was tried so far competes
            begun = time.perf_counter()
            part = starts[first : first + _TOGETHER]
            with self._problem.in_time():
                answers = untuned_answers(self._problem, some, [HardPrompt(start.token_ids) for start in part], folds)
                found += [answers(number, CalibrationKind.FITTED) for number in range(len(part))]
            taken = time.perf_counter() - begun
            for start, own in zip(part, found[first:], strict=False):  # none of a part that the time ended within
                self._note(f"words {start.name}", own, taken / len(part))
        if not found:
            return list(starts[:1])
        starts = starts[: len(found)]
        by_loss = sorted(range(len(starts)), key=lambda n: found[n].score.loss)
        clear = [n for n in by_loss if self._is_clear(found[n], found[0], len(starts))]
        return [starts[n] for n in dict.fromkeys([*clear, 0, *by_loss])]

    def _is_clear(self, found: HeldOut, own: HeldOut, among: int) -> bool:
        """Return whether words are better than the untuned prompt's own beyond what the best of so many owes to luck.

        By the paired test with Bonferroni's correction: the best of 24 cues on 64 examples looks good by chance alone.
        """
        if found.score.loss >= own.score.loss:
            return False
        evidence = found.compared_with(own, self._problem.seed)
        return evidence.is_better and evidence.p_loss < _CLEAR / among

    def _with_label_words(self, starts: Sequence[Words]) -> list[Words]:
        """Try other label words behind the best starting words; take them where they are clearly better.

        What is found in all examples, which is what would ship, is looked for here, while there is time.
        """
        searched = SearchedWords(LabelWordSearch(), starts[0].token_ids)
        begun = time.perf_counter()
        given, found = self.held_out(starts[0]), self.held_out(replace(starts[0], label_words=searched))
        if given is None or found is None:  # the time is over
            return list(starts)
        self._note(f"label words searched, words {starts[0].name}", found, time.perf_counter() - begun)
        if self._is_clear(found, given, 1) and searched.chosen(self._whole).task != self._problem.task:
            return [
                replace(s, name=f"{s.name}, label words searched", label_words=searched, differs=True) for s in starts
            ]
        return list(starts)

    def held_out(self, start: Start) -> HeldOut | None:
        """Return what a start answers to the held-out parts; it learns of labels from the training parts alone.

        None where the time ended before.
        """
        parts = []
        for number in range(len(self._folds)):
            if self._problem.out_of_time():
                return None
            own = start.label_words.chosen(fold_problem(self._problem, self._pool, self._folds, number))
            parts.append(held_out_values(own, start.candidate(own)))
        return gather(parts, self._pool.golds, self._folds)

    def _note(self, name: str, found: HeldOut, seconds: float) -> None:
        """Put one thing that was tried on the leaderboard and into the trace."""
        self.tried.append(found.tried(name, seconds))
        step = held_out_step("untrained", self.tried[-1], self._problem.task.answers.tuning_score)
        note(self._problem, self.trace, step)
