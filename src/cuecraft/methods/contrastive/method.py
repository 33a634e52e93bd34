"""Contrastive tuning: a prompt that brings texts of one class together, and a class head on what comes of it.

1. The untuned prompt is read once over all labelled examples, and a class head is fitted over the words that trainings
   start from, on folds.
2. For each learning rate and temperature a prompt is trained without each fold, and a class head is fitted to it. How
   far from the start it is to be, and the head's penalty, are chosen by answers to what was held out.
3. The prompts of the folds ship together, of the rate and the temperature of least held-out log-loss; or the words with
   a class head, or the untuned prompt, where these are as good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from pydantic import Field

from cuecraft.artifact import HardPrompt
from cuecraft.backbone import FeatureScale
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Document, HeldOutStep
from cuecraft.methods.auto.contenders import Contender, probed
from cuecraft.methods.auto.crossfit import ByHead, Configuration, Trainings, tokens_of
from cuecraft.methods.auto.starts import BarePrefix, BareWords
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive.training import ContrastiveTraining, PromptOf
from cuecraft.methods.evidence import Evidence, EvidenceVerdict, Tried, judge
from cuecraft.methods.held_out import HeldOut, stratified_folds, texts_of, untuned_answers
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem, note
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.untuned import untuned_prompt
from cuecraft.task import Task

_MARGIN = 0.01  # of accuracy within which tuning is called hardly worth it


class Contrastive(Method):
    """Prompts trained with the supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362)."""

    name: ClassVar[str] = "contrastive"
    has_own_head: ClassVar[bool] = True
    weighs_examples: ClassVar[bool] = True

    of: PromptOf = Field(PromptOf.PREFIX, description="what is trained: `deep`, `prefix` or `soft`")
    prompt_length: int = Field(8, ge=1, description="tuned positions, or tokens that a prefix stands for")
    learning_rates: tuple[float, ...] = Field(
        (0.05,), min_length=1, description="of the first step, in RMS units of what is trained; folds choose"
    )
    temperatures: tuple[float, ...] = Field((0.1,), min_length=1, description="of the loss; folds choose")
    epochs: int = Field(15, ge=1, description="passes over the training examples")
    batch_size: int = Field(48, ge=4, description="training examples of one step, as many of each class")
    folds: int = Field(4, ge=2, description="of the examples, at most; a prompt is trained without each")
    prompts: int = Field(8, ge=1, description="prompts that answer together, at most; fewer than folds: one of all")
    inverse_penalties: tuple[float, ...] = Field(
        (3.0, 10.0, 30.0, 100.0), min_length=1, description="values of scikit-learn's C of class heads; folds choose"
    )
    calibration: Calibrated = CalibrationKind.FITTED

    def longest_prompt(self) -> int:
        """Return the positions to keep free: a prefix stands before the template's words, which need theirs too."""
        return self.prompt_length + (Task.reserve if self.of is PromptOf.PREFIX else 0)

    def fit(self, problem: Problem) -> Outcome:
        """Train on folds of the training and dev examples together; what answers best to held-out parts ships."""
        return _Choice(problem, self).made()

    def trainings(self) -> list[ContrastiveTraining]:
        """Return what is tried, in order."""
        return [
            ContrastiveTraining(
                of=self.of,
                learning_rate=rate,
                temperature=temperature,
                epochs=self.epochs,
                batch_size=self.batch_size,
            )
            for temperature in self.temperatures
            for rate in self.learning_rates
        ]


@dataclass
class _Choice:
    """One problem in progress."""

    problem: Problem
    options: Contrastive

    def __post_init__(self) -> None:
        self.trace: list[Document] = []
        self.contenders: list[Contender] = []
        self.pool = self.problem.pool
        self.whole = replace(self.problem, train=self.pool, dev=None)
        texts = texts_of(self.pool.context.examples)
        self.folds = stratified_folds(self.pool.golds.strata, self.options.folds, self.problem.seed, texts)
        #: The untuned prompt answers by its label words where it has some, then calibrated, else by a class head.
        self.kind = self.options.calibration if self.problem.backbone.has_words else CalibrationKind.NONE

    def made(self) -> Outcome:
        """Return the outcome.

        Raises:
            MethodError: no two folds, or no training, is possible with so few examples.
        """
        if not self.folds:
            raise MethodError(
                "contrastive compares texts of one class with each other, on folds; give two different texts of each "
                "class at least, or use linear-probe"
            )
        untuned, _ = untuned_prompt(self.whole, self.kind)
        before: HeldOut | None = None
        with self.problem.in_time():
            begun = time.perf_counter()
            prompt = HardPrompt(self.problem.initial_ids)
            before = untuned_answers(self.problem, self.pool, [prompt], self.folds)(0, self.kind)
            before = before.cross_decided(self.problem.seed)
            seconds = time.perf_counter() - begun
            self._note("untuned", before)
        if before is None:
            reason = "the time limit ended before the untuned prompt was measured, so nothing was tried"
            return Outcome(untuned, untuned, self.trace, verdict=EvidenceVerdict("untuned", reason))
        self._try_all(seconds)
        return self._judged(untuned, before, seconds)

    def _try_all(self, seconds: float) -> None:
        """Gather contenders, given the seconds that one pass over the texts takes."""
        options, problem = self.options, self.problem
        ids = filled_ids(problem, options.prompt_length)
        kind = BarePrefix if options.of is PromptOf.PREFIX else BareWords
        start = kind.of("prefix" if options.of is PromptOf.PREFIX else "own words", ids)
        own = BareWords.of("own words", problem.initial_ids)
        pace = seconds / tokens_of(self.pool, len(problem.initial_ids))
        trainings = Trainings(problem, self.pool, self.folds, pace, options.prompts, self.trace)
        for words in (own, start):
            self._try(partial(probed, self.whole, words, self.folds, options.inverse_penalties, FeatureScale.UNIT))
        for training in options.trainings():
            configuration = Configuration((start,), training, ByHead(options.inverse_penalties))
            self._try(partial(trainings.cross_fit, configuration))

    def _try(self, attempt: Callable[[], Contender | None]) -> None:
        """Add a contender, unless the time ends before."""
        found: Contender | None = None
        if self.problem.out_of_time():
            return
        with self.problem.in_time():
            found = attempt()
        if found is not None:
            self.contenders.append(found)
            self._note(found.name, found.answers(self.problem.seed))

    def _note(self, name: str, found: HeldOut) -> None:
        score = found.score
        step = HeldOutStep("tried", tried=name, dev_loss=score.loss, dev_score=score.primary, measure=score.measure)
        note(self.problem, self.trace, step)

    def _judged(self, untuned: Candidate, before: HeldOut, seconds: float) -> Outcome:
        """Return the contender of least held-out loss that is better than the untuned prompt, or that one."""
        seed, folds = self.problem.seed, len(self.folds)
        # A temperature alone can be a gain, which is none of a prompt's.
        base = min((before, before.recalibrated(seed)), key=lambda found: found.score.loss)
        plain = before.score
        tried = [Tried("untuned", plain.loss, plain.primary, before.sd, folds, len(self.pool), seconds, plain.measure)]
        ranked = sorted(self.contenders, key=lambda one: one.answers(seed).score.loss)
        tried = sorted([*tried, *(one.tried(seed) for one in ranked)], key=lambda row: row.loss)
        compared = [(one, one.answers(seed).compared_with(base, seed)) for one in ranked]
        for chosen, evidence in compared:
            found = chosen.shipped(self.problem.in_time) if evidence.is_better else None
            if found is not None:
                held_out = Score(evidence.loss, evidence.accuracy, evidence.measure)
                verdict = self._verdict(evidence, plain.primary, tried)
                answers = chosen.answers(seed).decided
                return Outcome(untuned, found, self.trace, None, held_out, verdict, tuple(tried), answers=answers)
        if not compared:
            verdict = EvidenceVerdict("untuned", "nothing was finished within the time limit")
        else:
            verdict = self._verdict(compared[0][1], plain.primary, tried)
            if verdict.ships == "tuned":
                verdict = EvidenceVerdict(
                    "untuned", "the time limit ended before what was better was made", compared[0][1]
                )
        return Outcome(untuned, untuned, self.trace, None, base.score, verdict, tuple(tried), answers=before.decided)

    def _verdict(self, evidence: Evidence, untuned: float, tried: Sequence[Tried]) -> EvidenceVerdict:
        best = max(row.score for row in tried)
        return judge(evidence, {"untuned": untuned}, best, _MARGIN, len(self.contenders))
