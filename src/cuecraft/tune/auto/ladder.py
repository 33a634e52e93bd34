"""Successive halving over configurations, on folds: many are tried on one fold, the better ones on more.

After Jamieson & Talwalkar (AISTATS 2016, arXiv 1502.07943). Configurations are compared on the folds that all of them
have seen, so that what differs is not the luck of a fold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from cuecraft.errors import BackboneError, MethodError, PromptError
from cuecraft.evidence import Tried, is_better
from cuecraft.method import Candidate, Event, Labelled, Problem
from cuecraft.search.folds import Fold
from cuecraft.seeding import derived_seed
from cuecraft.storage import digest
from cuecraft.tune.auto.folds import HeldOut, LastEpoch, fold_problem, gather, log_probabilities
from cuecraft.tune.auto.starts import OtherWords, Start
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining
from cuecraft.tune.soup import average, part_of_the_way

#: Of the way from a start to what was trained: on few examples the whole way is often too far.
SHARES = (0.25, 0.5, 0.75, 1.0)
_ENOUGH = 32  # held-out examples before any configuration is dropped: on 16, one hit is six points


@dataclass(frozen=True)
class Configuration:
    """What one training does.

    Args:
        start: where it starts.
        training: the kind of training and its options; None for the start itself, calibrated.
    """

    start: Start
    training: OffsetTraining | EmbeddingTraining | None

    @property
    def name(self) -> str:
        """As shown."""
        if self.training is None:
            return self.start.name
        return f"{self.training.name} {self.training.learning_rate:g} x {self.training.epochs}, {self.start.name}"

    def trained(self, problem: Problem, start: Candidate, trace: list[Event]) -> Candidate | None:
        """Return what training makes of a start; None where the time ended before.

        Args:
            problem: the problem, with the start's label words; only its training part is looked at.
            start: the start's candidate.
            trace: gets the training's events.
        """
        if self.training is None:
            return start
        # A state on disk must not serve another training: with a time limit their order differs from run to run.
        key = digest({"configuration": self.name, "seed": problem.seed, "rows": len(problem.train)})
        kept = problem.checkpoints and problem.checkpoints.within(key[:16])
        selection = LastEpoch(replace(problem, dev=None, checkpoints=kept))
        self.training.refine(selection.problem, start, selection)
        trace += selection.trace
        return selection.best


@dataclass(eq=False)
class Run:
    """A configuration and how it did on the folds that it was tried on.

    Args:
        configuration: the configuration.
        answers: of each fold in order, what it answers to the held-out part, `[n, C]` log-probabilities, for each of
            `SHARES` of the way from its start.
        starts: of each fold, where training started.
        candidates: of each fold, what was trained.
        seconds: spent on it.
    """

    configuration: Configuration
    answers: list[list[Tensor]] = field(default_factory=list)
    starts: list[Candidate] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0


class Ladder:
    """The folds of one problem, and the trainings on them.

    Args:
        problem: what is solved.
        pool: all labelled examples.
        folds: which of them are held out in turn.
        untuned: what the untuned prompt answers to the held-out parts; what is no better cannot ship.
    """

    def __init__(self, problem: Problem, pool: Labelled, folds: Sequence[Fold], untuned: HeldOut | None = None) -> None:
        self._problem = problem
        self._pool = pool
        self._folds = folds
        self._untuned = untuned
        self.trace: list[Event] = []
        self.refit_seconds = 0.0  # what the last step will take, as far as that is known
        self.refusal: str | None = None  # why a configuration could not be tried, where none could
        self._rounds = 0  # folds that all survivors were tried on

    def climb(self, configurations: Sequence[Configuration], keep: Sequence[int], members: int = 1) -> list[Run]:
        """Try configurations; return their runs, the chosen one first, then by folds and held-out loss.

        Args:
            configurations: to be tried, the most promising first.
            keep: how many go on after the first fold, the second, and so on; the last number holds to the end. The
                first cut waits for so many held-out examples that they can tell configurations apart.
            members: trainings, in other orders, whose average answers to each held-out part for what is left in the
                end. What ships is such an average, and it does better than one training.
        """
        runs = [Run(configuration) for configuration in configurations]
        alive, left = list(runs), list(keep)
        for number in range(len(self._folds)):
            for run in alive:
                if self._problem.out_of_time(self._needed(run)) or not self._tried_in_time(run, number):
                    return self._ranked(runs)
            alive = [run for run in alive if len(run.answers) > number]
            self._rounds = number + 1
            if sum(len(fold.held_out) for fold in self._folds[: number + 1]) < _ENOUGH:
                continue
            best = sorted(alive, key=lambda run: self.answers(run, number + 1).score.loss)[: left[0]]
            alive = [run for run in alive if run in best]
            left = left[1:] or left
        for run in alive:
            if not self._look_again(run, members):
                break
        return self._ranked(runs)

    def answers(self, run: Run, folds: int | None = None) -> HeldOut:
        """Return what a run answers to the held-out parts of its first folds, calibrated by one another."""
        return self._best(run, folds)[1]

    def plain_answers(self, run: Run) -> HeldOut:
        """Return what a run answers to the held-out parts."""
        return self._at(run, self.share(run), None)

    def share(self, run: Run, folds: int | None = None) -> int:
        """Return which of `SHARES` of the way is taken, by a run's first folds.

        The farthest one that is not clearly worse than the one of least log-loss (`_is_near`): what was trained is gone
        back on for a reason only. One that is no better than the untuned prompt is taken only where none is.
        """
        return self._best(run, folds)[0]

    def _best(self, run: Run, folds: int | None) -> tuple[int, HeldOut]:
        """Return the share of the way that is taken, and its answers, calibrated by one another."""
        shares = range(len(run.answers[0]))
        found = {share: self._at(run, share, folds).recalibrated(self._problem.seed) for share in shares}
        better = {share: answers for share, answers in found.items() if self._is_better(answers)} or found
        least = min((answers.losses for answers in better.values()), key=lambda losses: float(losses.mean()))
        taken = max(share for share, answers in better.items() if _is_near(answers.losses, least))
        return taken, better[taken]

    def _is_better(self, answers: HeldOut) -> bool:
        """Tell whether answers are better than the untuned prompt's to the same examples."""
        if self._untuned is None:
            return True
        found, untuned = answers.score, self._untuned.first(len(answers.sizes)).score
        return is_better((found.loss, found.accuracy), (untuned.loss, untuned.accuracy))

    def _at(self, run: Run, share: int, folds: int | None) -> HeldOut:
        count = len(run.answers) if folds is None else folds
        return gather([parts[share] for parts in run.answers[:count]], self._pool.labels, self._folds[:count])

    def tried(self, run: Run) -> Tried:
        """Return a run's line of the leaderboard."""
        share, found = self._best(run, None)
        name = run.configuration.name
        if run.configuration.training is not None and SHARES[share] < 1:
            name += f", {SHARES[share]:.0%} of the way"
        return Tried(name, found.score.loss, found.score.accuracy, found.sd, len(run.answers), run.seconds)

    def _look_again(self, run: Run, members: int) -> bool:
        """Let every fold of a run answer by the average of several trainings; return whether time was left for that."""
        if run.configuration.training is None:
            return True
        for number in range(len(run.answers)):
            if self._problem.out_of_time((members - 1) * self._needed(run)) or not self._add(run, number, members):
                return False
        return True

    def _add(self, run: Run, number: int, members: int) -> bool:
        """Train on one fold again in other orders, and let the average answer; return whether time was left for it."""
        begun = time.perf_counter()
        own = self._fold(run, number)
        trace: list[Event] = []
        start = run.configuration.start.candidate(own)
        found = [replace(run.candidates[number], reader=None)]
        for member in range(1, members):
            other = replace(own, seed=derived_seed(own.seed, f"member/{member}"))
            candidate = run.configuration.trained(other, start, trace)
            if candidate is None:
                return False
            found.append(candidate)
        self.trace += [event | {"configuration": run.configuration.name, "fold": number} for event in trace]
        run.candidates[number] = retasked(average(found), own, self._problem)
        run.answers[number] = self._answers(own, run, start, average(found))
        run.seconds += time.perf_counter() - begun
        return True

    def best_of_folds(self, run: Run) -> Candidate:
        """Return the fold's own candidate of least held-out loss."""
        share = self.share(run)
        parts = zip(run.answers, self._folds, strict=False)
        losses = [gather([answers[share]], self._pool.labels, [fold]).score.loss for answers, fold in parts]
        best = losses.index(min(losses))
        return self.moved(run, run.starts[best], run.candidates[best])

    def moved(self, run: Run, start: Candidate, trained: Candidate) -> Candidate:
        """Return what lies as far from a start to what was trained as is best for a run."""
        if run.configuration.training is None:
            return trained
        return part_of_the_way(start, trained, SHARES[self.share(run)], self._problem.backbone.embed)

    def _answers(self, own: Problem, run: Run, start: Candidate, trained: Candidate) -> list[Tensor]:
        """Return what is answered to a fold's held-out part at each share of the way."""
        if run.configuration.training is None:
            return [log_probabilities(own, trained)]
        embed = own.backbone.embed
        return [log_probabilities(own, part_of_the_way(start, trained, share, embed)) for share in SHARES]

    def _ranked(self, runs: Sequence[Run]) -> list[Run]:
        """Put the run that is to be taken first.

        Of those that were tried on all folds that any survivor was, it is the most promising one that is not clearly
        worse than the best: whose mean log-loss is within one standard error of the paired difference (Breiman et al.,
        1984, section 3.4.3). With few examples the least loss is the luck of the folds.
        """
        tried = [run for run in runs if run.answers]
        if not tried:
            return []
        shared = max(1, self._rounds)
        finalists = [run for run in tried if len(run.answers) >= shared]
        losses = {id(run): self.answers(run, shared).losses for run in finalists}
        finalists.sort(key=lambda run: float(losses[id(run)].mean()))
        best = losses[id(finalists[0])]
        chosen = next(run for run in tried if run in finalists and _is_near(losses[id(run)], best))
        others = [run for run in tried if run not in finalists]
        others.sort(key=lambda run: (-len(run.answers), self.answers(run).score.loss))
        return [chosen, *(run for run in finalists if run is not chosen), *others]

    def _needed(self, run: Run) -> float:
        """Return the seconds that a fold of this run and the last step take, as far as that is known."""
        if not run.answers:
            return self.refit_seconds
        return run.seconds / len(run.answers) + self.refit_seconds

    def _tried_in_time(self, run: Run, number: int) -> bool:
        """Train on one fold, unless the backbone refuses; return whether time was left for it."""
        try:
            return self._train(run, number)
        except (MethodError, BackboneError, PromptError) as error:
            self.refusal = f"{run.configuration.name}: {error}"
            return True

    def _fold(self, run: Run, number: int) -> Problem:
        """Return the problem of a fold, with the run's label words, and time kept for the last step."""
        own = fold_problem(self._problem, self._pool, self._folds, number)
        own = replace(own, out_of_time=lambda reserve=0.0: self._problem.out_of_time(reserve + self.refit_seconds))
        return run.configuration.start.label_words.chosen(own)

    def _train(self, run: Run, number: int) -> bool:
        """Train on one fold; return whether that came to its end in time, which alone is kept."""
        begun = time.perf_counter()
        own = self._fold(run, number)
        trace: list[Event] = []
        start = run.configuration.start.candidate(own)
        candidate = run.configuration.trained(own, start, trace)
        self.trace += [event | {"configuration": run.configuration.name, "fold": number} for event in trace]
        if candidate is None:
            return False
        answers = self._answers(own, run, start, candidate)
        if not all(bool(part.isfinite().all()) for part in answers):
            raise MethodError("the training diverged; its answers are not finite")
        run.answers.append(answers)
        run.starts.append(retasked(start, own, self._problem))
        run.candidates.append(retasked(candidate, own, self._problem))
        seconds = time.perf_counter() - begun
        run.seconds += seconds
        # Making the choice on all examples takes longer than a fold, by their number; the rest is for surprises.
        self.refit_seconds = max(self.refit_seconds, 1.3 * seconds * len(self._pool) / len(own.train))
        return True


def _is_near(losses: Tensor, best: Tensor) -> bool:
    """Tell whether losses `[n]` are on average within one standard error of their difference to the best ones."""
    difference = losses - best
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) <= error


def retasked(candidate: Candidate, own: Problem, problem: Problem) -> Candidate:
    """Return a candidate of a problem with label words of its own as one of the problem at large."""
    if own.task is problem.task:
        return candidate
    return replace(candidate, reader=OtherWords(problem.backbone, own.task))
