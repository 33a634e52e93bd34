"""Successive halving over configurations, on folds: many are tried on one fold, the better ones on more.

After Jamieson & Talwalkar (AISTATS 2016, arXiv 1502.07943). Configurations are compared on the folds that all of them
have seen, each at its own best number of epochs, so that what differs is not the luck of a fold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from cuecraft.errors import BackboneError, MethodError, PromptError
from cuecraft.evidence import Tried
from cuecraft.method import Candidate, Event, Labelled, Problem, Score
from cuecraft.search.folds import Fold
from cuecraft.tune.auto.folds import Answers, HeldOut, fold_problem, gather
from cuecraft.tune.auto.starts import OtherWords, Start
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining


@dataclass(frozen=True)
class Configuration:
    """What one training does.

    Args:
        start: where it starts.
        training: the kind of training and its options.
    """

    start: Start
    training: OffsetTraining | EmbeddingTraining

    @property
    def name(self) -> str:
        """As shown."""
        return f"{self.training.name} {self.training.learning_rate:g}, {self.start.name}"


@dataclass
class Run:
    """A configuration and how it did on the folds that it was tried on.

    Args:
        configuration: the configuration.
        answers: of each fold in order, what it answers to the held-out part after each epoch, `[n, C]`.
        best: of each fold, the candidate of least held-out loss.
        seconds: spent on it.
    """

    configuration: Configuration
    answers: list[list[Tensor]] = field(default_factory=list)
    best: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0


class Ladder:
    """The folds of one problem, and the trainings on them.

    Args:
        problem: what is solved.
        pool: all labelled examples.
        folds: which of them are held out in turn.
    """

    def __init__(self, problem: Problem, pool: Labelled, folds: Sequence[Fold]) -> None:
        self._problem = problem
        self._pool = pool
        self._folds = folds
        self.trace: list[Event] = []
        self.refit_seconds = 0.0  # what the last step will take, as far as that is known
        self.refusal: str | None = None  # why a configuration could not be tried, where none could

    def climb(self, configurations: Sequence[Configuration], keep: Sequence[int]) -> list[Run]:
        """Try configurations; return their runs, the best first, those that were tried on more folds before others.

        Args:
            configurations: to be tried, in this order.
            keep: how many go on after the first fold, the second, and so on; the last number holds to the end.
        """
        runs = [Run(configuration) for configuration in configurations]
        alive, done = list(runs), 0
        for number in range(len(self._folds)):
            for run in alive:
                if self._problem.out_of_time(self._needed(run)) or not self._tried_in_time(run, number):
                    return self._ranked(runs)
            done = number + 1
            left = keep[min(number, len(keep) - 1)]
            alive = sorted((run for run in alive if run.answers), key=lambda run: self.score(run, done).loss)[:left]
        return self._ranked(runs)

    def answers(self, run: Run, folds: int | None = None) -> Answers:
        """Return what a run answers to the held-out parts of its first folds, at its best number of epochs."""
        count = len(run.answers) if folds is None else folds
        epoch = self.best_epoch(run, count)
        return self._at(run, epoch, count)

    def score(self, run: Run, folds: int | None = None) -> Score:
        """Return a run's held-out score on its first folds."""
        return self.answers(run, folds).score

    def best_epoch(self, run: Run, folds: int | None = None) -> int:
        """Return the number of epochs with the least held-out loss over a run's first folds."""
        count = len(run.answers) if folds is None else folds
        epochs = min(len(parts) for parts in run.answers[:count])
        losses = [self._at(run, epoch, count).score.loss for epoch in range(epochs)]
        return losses.index(min(losses))

    def tried(self, run: Run) -> Tried:
        """Return a run's line of the leaderboard."""
        found = self.answers(run)
        count = len(run.answers)
        return Tried(run.configuration.name, found.score.loss, found.score.accuracy, found.sd, count, run.seconds)

    def _at(self, run: Run, epoch: int, count: int) -> Answers:
        parts = [answers[epoch] for answers in run.answers[:count]]
        return gather(parts, self._pool.labels, self._folds[:count])

    def _ranked(self, runs: Sequence[Run]) -> list[Run]:
        tried = [run for run in runs if run.answers]
        return sorted(tried, key=lambda run: (-len(run.answers), self.score(run).loss))

    def _needed(self, run: Run) -> float:
        """Return the seconds that a fold of this run and the last step take, as far as that is known."""
        if not run.answers:
            return self.refit_seconds
        return run.seconds / len(run.answers) + self.refit_seconds

    def best_of_folds(self, run: Run) -> Candidate:
        """Return the fold's own candidate of least held-out loss."""
        losses = [min(self._fold_loss(part, number) for part in parts) for number, parts in enumerate(run.answers)]
        return run.best[losses.index(min(losses))]

    def _fold_loss(self, answers: Tensor, number: int) -> float:
        return gather([answers], self._pool.labels, [self._folds[number]]).score.loss

    def _tried_in_time(self, run: Run, number: int) -> bool:
        """Train on one fold, unless the backbone refuses; return whether time was left for it."""
        try:
            return self._train(run, number)
        except (MethodError, BackboneError, PromptError) as error:
            self.refusal = f"{run.configuration.name}: {error}"
            return True

    def _train(self, run: Run, number: int) -> bool:
        """Train on one fold; return whether that came to its end in time, which alone is kept."""
        begun = time.perf_counter()
        own = fold_problem(self._problem, self._pool, self._folds, number)
        own = replace(own, out_of_time=lambda reserve=0.0: self._problem.out_of_time(reserve + self.refit_seconds))
        own = run.configuration.start.label_words.chosen(own)
        selection = HeldOut(own)
        run.configuration.training.refine(own, run.configuration.start.candidate(own), selection)
        seconds = time.perf_counter() - begun
        details = {"configuration": run.configuration.name, "fold": number}
        self.trace += [event | details for event in selection.trace]
        if own.out_of_time():
            return False
        # Making the choice on all examples takes longer than a fold, by their number; the rest is for surprises.
        share = len(self._pool) / len(own.train)
        self.refit_seconds = max(self.refit_seconds, 1.3 * share * seconds)
        assert selection.best is not None
        run.answers.append(selection.answers)
        run.best.append(retasked(selection.best, own, self._problem))
        run.seconds += seconds
        return True


def retasked(candidate: Candidate, own: Problem, problem: Problem) -> Candidate:
    """Return a candidate of a problem with label words of its own as one of the problem at large."""
    if own.task is problem.task:
        return candidate
    return replace(candidate, reader=OtherWords(problem.backbone, own.task))
