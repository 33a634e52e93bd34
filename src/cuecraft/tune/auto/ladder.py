"""Configurations on folds: the one that leads on all of them, then the others by successive halving beside it.

After Jamieson & Talwalkar (AISTATS 2016, arXiv 1502.07943). Configurations are compared on the folds that all of them
have seen, so that what differs is not the luck of a fold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from typing import NamedTuple

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


class Trained(NamedTuple):
    """What came of one training.

    Args:
        candidate: what was trained; None where the time ended before.
        events: its trace.
        earlier: its share of the seconds that a run which was stopped had spent on it.
    """

    candidate: Candidate | None
    events: list[Event]
    earlier: float


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

    @property
    def size(self) -> int:
        """How much one training has to do for each example, beside other configurations."""
        return self.training.epochs * len(self.start.token_ids) if self.training else 0

    def goes_farther(self, other: Configuration) -> bool:
        """Tell whether it trains the same from the same start, and its steps add up to more."""
        own, its = self.training, other.training
        if own is None or its is None or type(own) is not type(its) or self.start != other.start:
            return False
        return own.learning_rate * own.epochs > its.learning_rate * its.epochs

    def trained(self, parts: Sequence[tuple[Problem, Candidate]]) -> list[Trained]:
        """Return what training makes of starts: side by side, or one after the other where they share no pass.

        Args:
            parts: problems, with the start's label words, of which only the training part is looked at; and the start's
                candidate for each.
        """
        if self.training is None or not parts:
            return [Trained(start, [], 0.0) for _, start in parts]
        rest = parts[1:]
        backbone = parts[0][0].backbone
        if rest and not backbone.share_passes([(own.train.context, start.prompt) for own, start in parts]):
            # Nothing is gained by going on together, and what is complete is kept.
            done = self.trained(parts[:1])
            is_done = done[0].candidate is not None
            return done + (self.trained(rest) if is_done else [Trained(None, [], 0.0) for _ in rest])
        problems = [problem for problem, _ in parts]
        # A state on disk must not serve another training: with a time limit their order differs from run to run.
        key = digest({"configuration": self.name, "parts": [[own.seed, len(own.train)] for own in problems]})
        kept = problems[0].checkpoints and problems[0].checkpoints.within(key[:16])
        selections = [LastEpoch(replace(own, dev=None, checkpoints=kept)) for own in problems]
        self.training.refine_beside(list(zip((start for _, start in parts), selections, strict=True)))
        return [Trained(own.best, own.trace, own.earlier / len(selections)) for own in selections]


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
        alone: seconds that one training on a fold takes by itself; 0 where that is not known.
        each: seconds that each of the last trainings on folds took, side by side where there were several.
    """

    configuration: Configuration
    answers: list[list[Tensor]] = field(default_factory=list)
    starts: list[Candidate] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0
    alone: float = 0.0
    each: float = 0.0


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
        self._kept_back = 0.0  # seconds that trainings leave for what comes after them, as far as that is known
        self._measured: Run | None = None  # one that was trained on a fold alone
        self.refusal: str | None = None  # why a configuration could not be tried, where none could
        self._rounds = 0  # folds that all survivors were tried on

    def climb(self, configurations: Sequence[Configuration], keep: Sequence[int], members: int = 1) -> list[Run]:
        """Try configurations; return their runs, the chosen one first, then by folds and held-out loss.

        What is not trained is read first, which takes little time. The most promising training goes through all folds
        before any other is tried: whenever the time ends, something that was checked as well as it can be is there to
        ship, and the others know what they have to beat. Where one fold is enough to tell configurations apart, they
        are tried on it before that, as many as there is time for, and the one that leads then goes first.

        Args:
            configurations: to be tried, the most promising first.
            keep: how many go on after each round, the last number to the end. The first round takes so many folds that
                their held-out examples can tell configurations apart, each later one as many as all before it.
            members: trainings on each fold of what is chosen, in other orders; their average answers to the held-out
                part, unless it is clearly worse. What ships is such an average, or several prompts where there is none.
        """
        self._rounds = 0
        runs = [Run(configuration) for configuration in configurations]
        trainings = [run for run in runs if run.configuration.training is not None]
        others = [run for run in runs if run.configuration.training is None]
        for run in others:
            self._tried_in_time(run, range(len(self._folds)))
        if self._one_completed(trainings):
            runs = [*trainings, *others]
            self._tried_beside(runs, keep)
            if members > 1:
                self._look_again(self._ranked(runs)[0], members)
        else:
            # What was checked on all folds comes before a training that was not.
            self._rounds = max((len(run.answers) for run in others), default=0)
        return self._ranked(runs)

    def _one_completed(self, runs: list[Run]) -> bool:
        """Try the run that leads on all folds; return whether there was time for it.

        One that the backbone refuses is struck off, and the next one leads. The first fold says how long the others
        take: side by side where there is time for all of them, else one after the other.
        """
        rest = range(1, len(self._folds))
        while self._begun(runs):
            if self._enough == 1:
                self._screen(runs)
            leader = self._ranked(runs)[0]
            self._kept_back = self._on_all(leader, 1)
            for block in [rest] if self._fits(leader, len(rest)) else [[number] for number in rest]:
                if not self._tried_in_time(leader, block):
                    return False
                if len(leader.answers) <= block[-1]:
                    break  # it was refused
            if len(leader.answers) == len(self._folds):
                return True
            runs.remove(leader)
        return False

    def _begun(self, runs: list[Run]) -> bool:
        """Try the most promising run that the backbone takes on the first fold, unless one was tried on it already.

        Returns whether there was time for it. Those that are refused are struck off.
        """
        while runs and not any(run.answers for run in runs):
            if not self._tried_in_time(runs[0], [0]):
                return False
            if not runs[0].answers:
                del runs[0]
        return bool(runs)

    def _screen(self, runs: list[Run]) -> None:
        """Try runs on the first fold, as long as there is time to go through the rest with whichever leads then.

        Where the first one went the whole way from its start, those that go farther come before all others. Those that
        are refused are struck off.
        """
        rest, first = len(self._folds) - 1, self._ranked(runs)[0]
        others = [run for run in runs if not run.answers]
        if self.share(first) == len(SHARES) - 1:
            others.sort(key=lambda run: not run.configuration.goes_farther(first.configuration))
        for run in others:
            leading = [own for own in runs if own.answers or own is run]
            self._kept_back = max(self._seconds(own, rest) + self._on_all(own, 1) for own in leading)
            if not self._fits(run, 1):
                continue
            if not self._tried_in_time(run, [0]):
                return
            if not run.answers:
                runs.remove(run)

    def _tried_beside(self, runs: Sequence[Run], keep: Sequence[int]) -> None:
        """Try the other runs, fewer on twice as many folds each time; what there is no time for is passed over."""
        alive, left = list(runs), list(keep)
        while self._rounds < len(self._folds):
            block = range(self._rounds, min(2 * self._rounds or self._enough, len(self._folds)))
            for run in alive:
                is_behind = len(run.answers) < block.stop
                if is_behind and self._fits(run, len(block)) and not self._tried_in_time(run, block):
                    return
            self._rounds = block.stop
            alive = [run for run in alive if len(run.answers) >= block.stop]
            alive = sorted(alive, key=lambda run: self.answers(run, block.stop).score.loss)[: left[0]]
            left = left[1:] or left

    @property
    def _enough(self) -> int:
        """How many folds hold enough examples to tell configurations apart, or all of them."""
        seen = list(accumulate(len(fold.held_out) for fold in self._folds))
        return next((number for number, rows in enumerate(seen, start=1) if rows >= _ENOUGH), len(seen))

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
        own = found.score
        return Tried(name, own.loss, own.accuracy, found.sd, len(run.answers), len(found.labels), run.seconds)

    def _look_again(self, run: Run, members: int) -> None:
        """Train a run on its folds again in other orders, and let the averages answer, where there is time for it."""
        numbers = range(len(run.answers))
        if run.configuration.training is None or not self._fits(run, (members - 1) * len(numbers)):
            return
        with self._problem.in_time():  # where the time ends, what was found before stays
            self._average_on_folds(run, members, numbers)

    def _average_on_folds(self, run: Run, members: int, numbers: Sequence[int]) -> None:
        begun = time.perf_counter()
        owns = [self._fold(run, number) for number in numbers]
        starts = [replace(start, reader=None) for start in run.starts]
        means = [[replace(candidate, reader=None)] for candidate in run.candidates]
        orders = [(number, f"member/{member}") for number in numbers for member in range(1, members)]
        parts = [
            (number, (replace(owns[number], seed=derived_seed(owns[number].seed, order)), starts[number]))
            for number, order in orders
        ]
        try:
            found, earlier = self._trained(run, parts)
        except (MethodError, BackboneError, PromptError):
            return  # what was found before stays
        for (number, _), candidate in zip(orders, found, strict=False):
            means[number].append(candidate)
        run.seconds += time.perf_counter() - begun + earlier
        averages = [average(own) for own in means]
        answers = [
            self._answers(own, run, start, mean) for own, start, mean in zip(owns, starts, averages, strict=True)
        ]
        if len(found) == len(parts) and _are_finite(answers) and self._are_no_worse(answers, run):
            run.answers = answers
            run.candidates = [retasked(mean, own, self._problem) for mean, own in zip(averages, owns, strict=True)]

    def _are_no_worse(self, answers: list[list[Tensor]], run: Run) -> bool:
        """Tell whether answers of averages are not clearly worse than a run's own: what lies far apart has no mean."""
        (_, mean), (_, single) = self._best(replace(run, answers=answers), None), self._best(run, None)
        return _is_near(mean.losses, single.losses)

    def _trained(
        self, run: Run, parts: Sequence[tuple[int, tuple[Problem, Candidate]]]
    ) -> tuple[list[Candidate], float]:
        """Train on folds, given by number; return what was trained, up to the first that there was no time for.

        And the seconds of it that a run which was stopped had spent.
        """
        found = run.configuration.trained([part for _, part in parts])
        for (number, _), own in zip(parts, found, strict=True):
            self.trace += [event | {"configuration": run.configuration.name, "fold": number} for event in own.events]
        done = takewhile(lambda candidate: candidate is not None, (own.candidate for own in found))
        return [candidate for candidate in done if candidate is not None], sum(own.earlier for own in found)

    def members_in_time(self, run: Run, most: int) -> int:
        """Return how many trainings of a run on all examples there is time for, up to a number."""
        counts = range(most, 0, -1)
        return next((count for count in counts if not self._problem.out_of_time(self._on_all(run, count))), 0)

    def _on_all(self, run: Run, trainings: int) -> float:
        """Return the seconds that some trainings on all examples take: more than on a fold, by their number.

        The rest is for surprises.
        """
        learnt = min(len(fold.train) for fold in self._folds)
        return 1.3 * self._seconds(run, trainings) * len(self._pool) / learnt

    def by_held_out_loss(self, run: Run) -> list[int]:
        """Return the numbers of the folds that a run was tried on, that of least held-out loss first.

        Each was measured on examples of its own, so that one with easy examples comes early too.
        """
        share = self.share(run)
        parts = zip(run.answers, self._folds, strict=False)
        losses = [gather([answers[share]], self._pool.labels, [fold]).score.loss for answers, fold in parts]
        return sorted(range(len(losses)), key=losses.__getitem__)

    def best_of_folds(self, run: Run) -> Candidate:
        """Return the fold's own candidate of least held-out loss."""
        best = self.by_held_out_loss(run)[0]
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

        Of those that were tried on all folds that any survivor was, and on enough examples, it is the most promising
        one that is not clearly worse than the best: whose mean log-loss is within one standard error of the paired
        difference (Breiman et al., 1984, section 3.4.3). With few examples the least loss is the luck of the folds.
        """
        tried = [run for run in runs if run.answers]
        if not tried:
            return []
        shared = min(max(self._enough, self._rounds), max(len(run.answers) for run in tried))
        finalists = [run for run in tried if len(run.answers) >= shared]
        losses = {id(run): self.answers(run, shared).losses for run in finalists}
        finalists.sort(key=lambda run: float(losses[id(run)].mean()))
        best = losses[id(finalists[0])]
        chosen = next(run for run in tried if run in finalists and _is_near(losses[id(run)], best))
        others = [run for run in tried if run not in finalists]
        others.sort(key=lambda run: (-len(run.answers), self.answers(run).score.loss))
        return [chosen, *(run for run in finalists if run is not chosen), *others]

    def _seconds(self, run: Run, trainings: int) -> float:
        """Return the seconds that some trainings of a run on folds take, side by side, as far as that is known."""
        known = self._measured
        ratio = run.configuration.size / known.configuration.size if known else 0.0
        alone = run.alone or (known.alone * ratio if known else run.each)
        each = run.each or (known.each * ratio if known else 0.0)
        return max(alone, trainings * each)

    def _fits(self, run: Run, trainings: int) -> bool:
        """Tell whether there is time for some trainings of a run on folds, and for what comes after them."""
        return not self._problem.out_of_time(self._seconds(run, trainings) + self._kept_back)

    def _tried_in_time(self, run: Run, numbers: Sequence[int]) -> bool:
        """Train on some folds, unless the backbone refuses; return whether time was left for it."""
        if not self._fits(run, len(numbers)):
            return False
        try:
            with self._problem.in_time():
                return self._train(run, numbers)
            return False
        except (MethodError, BackboneError, PromptError) as error:
            self.refusal = f"{run.configuration.name}: {error}"
            return True

    def _fold(self, run: Run, number: int) -> Problem:
        """Return the problem of a fold, with the run's label words, and time kept for what comes after it."""
        own = fold_problem(self._problem, self._pool, self._folds, number)
        own = replace(own, out_of_time=lambda reserve=0.0: self._problem.out_of_time(reserve + self._kept_back))
        return run.configuration.start.label_words.chosen(own)

    def _train(self, run: Run, numbers: Sequence[int]) -> bool:
        """Train on some folds; return whether that came to its end in time, which alone is kept."""
        begun = time.perf_counter()
        owns = [self._fold(run, number) for number in numbers]
        starts = [run.configuration.start.candidate(own) for own in owns]
        found, earlier = self._trained(run, list(zip(numbers, zip(owns, starts, strict=True), strict=True)))
        done = list(zip(owns, starts, found, strict=False))
        answers = [self._answers(own, run, start, candidate) for own, start, candidate in done]
        if not _are_finite(answers):
            raise MethodError("the training diverged; its answers are not finite")
        run.answers += answers
        for own, start, candidate in done:
            run.starts.append(retasked(start, own, self._problem))
            run.candidates.append(retasked(candidate, own, self._problem))
        if len(found) == len(numbers):
            self._note_seconds(run, time.perf_counter() - begun + earlier, len(numbers))
        return len(found) == len(numbers)

    def _note_seconds(self, run: Run, seconds: float, trainings: int) -> None:
        """Learn how long trainings take."""
        run.seconds += seconds
        run.each = seconds / trainings
        if trainings == 1:
            run.alone = seconds
            if run.configuration.size and self._measured is None:
                self._measured = run
        self._kept_back = max(self._kept_back, self._on_all(run, 1))


def _are_finite(answers: Sequence[Sequence[Tensor]]) -> bool:
    """Tell whether all that is answered, on each fold at each share of the way, are numbers."""
    return all(bool(part.isfinite().all()) for own in answers for part in own)


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
