"""`auto`: chooses method and settings by cross-validation, and ships nothing that is worse than the untuned prompt.

1. The untuned prompt is read once over all labelled examples, and calibrated in several ways, on folds.
2. Starting words written by hand, and other label words, are tried without training.
3. Trainings from the best of them are tried on folds: the one that leads on all, then the others beside it by
   successive halving.
4. The best one is made again on all examples, several times, and averaged with what was trained on the folds, or
   answers together with it where that has no average; both take the calibration of the answers to what was held out.
5. It ships only if its held-out log-loss is less, and its accuracy not lower, than those of the calibrated untuned
   prompt; otherwise that one ships, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import Field

from cuecraft.evidence import Evidence, Tried, Verdict, judge
from cuecraft.method import CalibrationKind, Candidate, Event, Method, Outcome, Problem, ReadingLimit, Score, score
from cuecraft.prompts import CalibratedPrompt
from cuecraft.search.folds import stratified_folds, texts_of
from cuecraft.seeding import derived_seed
from cuecraft.task.verbalizer import default_word
from cuecraft.tune.auto.ladder import Ladder, Run, retasked
from cuecraft.tune.auto.plans import PLANS, Preset, configurations
from cuecraft.tune.auto.untrained import Untrained
from cuecraft.tune.soup import average, is_barrier_free
from cuecraft.untuned import untuned_prompt

_READING = 0.25  # of the time limit


class Auto(Method):
    """Automatic choice of method and settings, within a time limit where there is one."""

    name: ClassVar[str] = "auto"

    preset: Preset = Field(Preset.GOOD, description="how much is tried: `fast`, `good` or `best`")
    label_words: Literal["search", "keep"] | None = Field(
        None, description="`search` other label words, or `keep` these; by default those that the user gave are kept"
    )
    prompts: int = Field(
        8, ge=1, description="prompts that answer together, at most, where trainings cannot be averaged to one"
    )
    margin: float = Field(0.01, ge=0, le=1, description="accuracy within which tuning is called hardly worth it")

    def reading_limit(self) -> ReadingLimit:
        """Return how much it wants to read: what leaves time to try things."""
        return ReadingLimit(PLANS[self.preset].examples, _READING)

    def fit(self, problem: Problem) -> Outcome:
        """Choose by cross-validation over the training and dev examples together; make the choice on all of them."""
        return _Choice(problem, self).made()


@dataclass
class _Choice:
    """One problem under way.

    Args:
        problem: what is solved.
        options: of the method.
    """

    problem: Problem
    options: Auto
    trace: list[Event] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = PLANS[self.options.preset]
        self.pool = self.problem.pool
        self.whole = replace(self.problem, train=self.pool, dev=None)
        texts = texts_of(self.pool.context.examples)
        self.folds = stratified_folds(self.pool.labels, self.plan.folds, self.problem.seed, texts)

    def made(self) -> Outcome:
        """Return the outcome."""
        if not self.folds:
            plain, _ = untuned_prompt(self.whole, CalibrationKind.NONE)
            reason = "the labelled texts cannot be split so that each class is both learnt from and checked, so nothing"
            reason += " was tried; give at least two different texts of each class"
            return self._untuned_ships(plain, Verdict("untuned", reason), None)
        plan = replace(self.plan, searches_words=self._searches_words())
        untrained = Untrained(self.problem, self.pool, self.folds, plan)
        untuned = untrained.measure()
        if untuned is None:
            cut, _ = untuned_prompt(self.whole, CalibrationKind.NONE)
            reason = "the time limit ended before the untuned prompt was measured, so nothing was tried"
            return self._untuned_ships(cut, Verdict("untuned", reason), None)
        starts = untrained.starts()
        self.tried += untrained.tried
        ladder = Ladder(self.problem, self.pool, self.folds, untrained.best)
        runs: list[Run] = []
        if starts:
            runs = ladder.climb(configurations(self.plan, starts, untrained.filler), self.plan.keep, self.plan.checked)
        self.trace += untrained.trace
        if not runs:
            self.trace += ladder.trace
            reason = ladder.refusal or "no training was finished within the time limit"
            return self._untuned_ships(untuned, Verdict("untuned", reason), untrained.best.score)
        return self._judged(untuned, untrained, ladder, runs)

    def _searches_words(self) -> bool:
        """Tell whether other label words are tried: the user says so, or gave none and the preset does."""
        if self.options.label_words is not None:
            return self.options.label_words == "search"
        verbalizer = self.problem.task.verbalizer
        are_defaults = verbalizer.words == tuple((default_word(label),) for label in verbalizer.labels)
        return are_defaults and self.plan.searches_words

    def _judged(self, untuned: Candidate, untrained: Untrained, ladder: Ladder, runs: Sequence[Run]) -> Outcome:
        """Compare the runs, the chosen one first, with the untuned prompt on the folds that they were tried on.

        The first that is better ships, of those that were tried on as many folds as the chosen one.
        """
        most = len(runs[0].answers)
        finalists = [run for run in runs if len(run.answers) >= most]
        found = [(self._evidence(untrained, ladder, run), run) for run in finalists]
        evidence, run = next((pair for pair in found if pair[0].is_better), found[0])
        self.trace += ladder.trace
        self.tried += [ladder.tried(run) for run in runs]
        complete = [row.accuracy for row in self.tried if row.rows == len(self.pool)]
        best = max([evidence.accuracy, *complete])
        verdict = judge(evidence, untrained.accuracies, best, self.options.margin, len(runs))
        if verdict.ships == "untuned":
            before = Score(evidence.untuned_loss, evidence.untuned_accuracy)
            return self._untuned_ships(untuned, verdict, before)
        made: tuple[Candidate, Candidate | None] | None = None
        with self.problem.in_time():
            made = self._made_again(ladder, run)
        # Where the time ended, what was found on a fold is there.
        whole, words = made or (ladder.best_of_folds(run), None)
        # As the answers were that it was chosen by, of one training or an average of some. Several prompts that answer
        # together are less sure than they are on average, so theirs is cautious; nothing was held out from all of them.
        candidate = whole.then(ladder.plain_answers(run).calibration())
        return self._outcome(untuned, candidate, verdict, Score(evidence.loss, evidence.accuracy), words)

    def _evidence(self, untrained: Untrained, ladder: Ladder, run: Run) -> Evidence:
        found = ladder.answers(run)
        return found.beside(untrained.best.first(len(found.sizes)), self.problem.seed)

    def _made_again(self, ladder: Ladder, run: Run) -> tuple[Candidate, Candidate]:
        """Return the chosen configuration made on all examples, and the words that it started from."""
        configuration = run.configuration
        own = configuration.start.label_words.chosen(self.whole)
        start = configuration.start.candidate(own)
        words = retasked(start, own, self.problem)
        return (words if configuration.training is None else self._refit(ladder, run, own, start)), words

    def _refit(self, ladder: Ladder, run: Run, own: Problem, start: Candidate) -> Candidate:
        """Train from a start on all examples, several times in other orders, and average.

        Between them the trainings on the folds have seen all examples too. They are part of the average, unless each
        has words or a class head of its own to start from, and all of it where the time ends before any other. What
        lies too far apart to be averaged answers together, as several prompts: the refits, then the folds' best ones.
        """
        seeds = [f"refit/{number}" for number in range(ladder.members_in_time(run, self.plan.members))]
        found = run.configuration.trained([(replace(own, seed=derived_seed(own.seed, seed)), start) for seed in seeds])
        for number, refit in enumerate(found):
            self.trace += [event | {"refit": number} for event in refit.events]
        refits = _rated(own, [refit.candidate for refit in found if refit.candidate is not None])
        is_shared = run.configuration.start.is_fixed and start.prompt.head is None
        best_first = [run.candidates[number] for number in ladder.by_held_out_loss(run)] if is_shared else []
        folds = [replace(one, calibration=start.calibration) for one in best_first]
        rated = refits + _rated(own, folds)
        members, losses = [one for one, _ in rated], [loss for _, loss in rated]
        for count in dict.fromkeys((len(members), len(refits))):
            if count and is_barrier_free(own.backbone, members[:count], losses[:count], own.train):
                mean = replace(average(members[:count]), calibration=start.calibration)
                return retasked(ladder.moved(run, start, mean), own, self.problem)
        if not members:
            return ladder.best_of_folds(run)
        first, *others = [ladder.moved(run, start, member) for member in members[: self.options.prompts]]
        together = replace(first, others=tuple(CalibratedPrompt(other.prompt, first.calibration) for other in others))
        return retasked(together, own, self.problem)

    def _untuned_ships(self, untuned: Candidate, verdict: Verdict, held_out: Score | None) -> Outcome:
        return self._outcome(untuned, untuned, verdict, held_out, None)

    def _outcome(
        self, untuned: Candidate, best: Candidate, verdict: Verdict, held_out: Score | None, words: Candidate | None
    ) -> Outcome:
        event = {"phase": "verdict", **verdict.document()}
        self.problem.report(event)
        ranked = tuple(sorted(self.tried, key=lambda row: (-row.rows, row.loss)))
        return Outcome(untuned, best, [*self.trace, event], words, held_out, verdict, ranked)


def _rated(own: Problem, candidates: Sequence[Candidate]) -> list[tuple[Candidate, float]]:
    """Return candidates with their log-loss on a problem's examples, but for those whose answers are no numbers."""
    rated = [(candidate, score(own.backbone, candidate, own.train).loss) for candidate in candidates]
    return [(candidate, loss) for candidate, loss in rated if math.isfinite(loss)]
