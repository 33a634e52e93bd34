"""Cross-fitting: a prompt is trained without each fold, answers to it, and all of these prompts ship together.

The trainings go on side by side, so that their batches share passes. No training is made again on all examples: the
prompts of F folds have seen each of them F - 1 times between them, and several prompts answer better than one (Lester
et al., EMNLP 2021, section 6). What one prompt answers to the part that it did not see says how good they are, on the
safe side: their mean is better than one of them is on average, since log-loss is convex.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuecraft.errors import MethodError
from cuecraft.method import Candidate, Event, Labelled, Problem, Score, Selection
from cuecraft.search.folds import Fold
from cuecraft.seeding import derived_seed
from cuecraft.storage import digest
from cuecraft.tune.auto.contenders import Contender
from cuecraft.tune.auto.starts import Start, retasked
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.held_out import HeldOut, answers_of_folds, fold_problem
from cuecraft.tune.prompt_tuning import EmbeddingTraining
from cuecraft.tune.soup import part_of_the_way

#: Of the way from a start to what was trained: on few examples the whole way is often too far.
SHARES = (0.5, 0.75, 1.0)
_PASSES = 3.5  # that an epoch costs for each example: forward, backward, and what a smaller batch costs more
_SURPRISES = 1.2  # times as long as it is expected to take


@dataclass(frozen=True)
class Configuration:
    """What the trainings on folds do.

    Args:
        starts: where they start, in turn; all with the same label words.
        training: the kind of training and its options.
    """

    starts: tuple[Start, ...]
    training: OffsetTraining | EmbeddingTraining

    @property
    def name(self) -> str:
        """As shown."""
        names = ", ".join(start.name for start in self.starts)
        return f"{self.training.name} {self.training.learning_rate:g} x {self.training.epochs}, {names}"

    @property
    def first(self) -> Start:
        """The most promising start."""
        return self.starts[0]

    def start_of(self, fold: int) -> Start:
        """Return where the training on a fold starts."""
        return self.starts[fold % len(self.starts)]

    @property
    def length(self) -> float:
        """Tokens of the prompts that are trained, on average."""
        return sum(len(start.token_ids) for start in self.starts) / len(self.starts)

    def shortened(self, epochs: int) -> Configuration:
        """Return it with other epochs; its learning rate falls to zero over these."""
        return replace(self, training=self.training.model_copy(update={"epochs": epochs}))

    def trained(self, parts: Sequence[tuple[Problem, Candidate]]) -> list[Latest]:
        """Train from starts, side by side.

        Args:
            parts: problems, with the label words of the start, of which only the training part is looked at; and the
                candidate of the start for each.
        """
        problems = [own for own, _ in parts]
        # A state on disk must not serve another training: with a time limit their order differs from run to run.
        key = digest(
            {
                "starts": [start.name for start in self.starts],
                "training": [self.training.name, self.training.model_dump(mode="json")],
                "parts": [[own.seed, len(own.train)] for own in problems],
            }
        )
        kept = problems[0].checkpoints and problems[0].checkpoints.within(key[:16])
        selections = [Latest(replace(own, dev=None, checkpoints=kept)) for own in problems]
        self.training.refine_side_by_side(list(zip((start for _, start in parts), selections, strict=True)))
        return selections


@dataclass
class Latest(Selection):
    """Keeps the candidate after the last whole epoch; how good it is, others find out."""

    @property
    def epochs(self) -> int:
        """Whole epochs that were seen."""
        return int(self.trace[-1]["step"]) if self.trace else 0

    def see(self, candidate: Candidate, train: Score, dev: Score | None = None, **details: Any) -> bool:
        """Take note of an epoch; keep its candidate, unless it is the start, before the first one."""
        self.last_score = train
        self.note({**details, "train_loss": train.loss, "train_accuracy": train.accuracy})
        if not self.epochs:
            return False
        self.best, self.best_score = candidate, train
        return True


@dataclass(eq=False)
class CrossFit(Contender):
    """A configuration, trained without each fold.

    Args:
        configuration: what was trained.
        candidates: of each fold, the prompt that did not see it, as far from its start as is best.
        share: of the way from the start that they lie.
        trainings: that made it.
    """

    configuration: Configuration
    candidates: list[Candidate]
    share: float
    trainings: Trainings

    @property
    def _ship_as_they_are(self) -> bool:
        return self.trainings.folds_ship(self.configuration)

    @property
    def members(self) -> int:
        """As many as folds; or one, trained on all examples, where the prompts of folds may not answer together."""
        return len(self.candidates) if self._ship_as_they_are else 1

    @property
    def joins(self) -> bool:
        """Whether the label words are the task's own."""
        return self.configuration.first.has_own_task

    def made(self) -> Candidate | None:
        """Return the prompts of the folds, or one that is trained on all examples now; None where its time ends."""
        if self._ship_as_they_are:
            first, *others = self.candidates
            return first.joined_by(others)
        return self.trainings.on_all(self.configuration, self.share)

    def fallback(self) -> Candidate:
        """Return the prompt that did not see the first fold."""
        return self.candidates[0]

    def words(self) -> Candidate:
        """Return the words that it starts from, calibrated on all examples."""
        return self.configuration.first.on(self.trainings.whole)


class Trainings:
    """Trains configurations on folds, as far as there is time.

    Args:
        problem: what is solved.
        pool: all labelled examples.
        folds: which of them are held out in turn.
        pace: seconds that one pass over all examples takes, for each token of the prompt.
        most: prompts that may ship, at most.
        trace: takes the events of all trainings.
    """

    def __init__(
        self, problem: Problem, pool: Labelled, folds: Sequence[Fold], pace: float, most: int, trace: list[Event]
    ) -> None:
        self._problem = problem
        self._pool = pool
        self._folds = folds
        self._pace = pace * _SURPRISES
        self._most = most
        self._trace = trace
        self.whole = replace(problem, train=pool, dev=None)

    @property
    def may_join(self) -> bool:
        """Whether as many prompts as there are folds may ship."""
        return len(self._folds) <= self._most

    def folds_ship(self, configuration: Configuration) -> bool:
        """Return whether what is trained on the folds ships, and not a training on all examples."""
        return configuration.first.has_own_task and self.may_join

    def cross_fit(self, configuration: Configuration) -> CrossFit | None:
        """Train on all folds, for as many epochs as there is time for; None where there is none.

        Raises:
            CuecraftError: the backbone refuses the configuration, or the training diverged.
        """
        fitting = self._in_time(configuration)
        return None if fitting is None else self._cross_fitted(fitting)

    def _in_time(self, configuration: Configuration) -> Configuration | None:
        """Return a configuration with as many epochs as there is time for; None where that is not even one."""
        learnt = len(self._folds) - 1
        each = configuration.length * self._pace * _PASSES * (learnt + (not self.folds_ship(configuration)))
        after, epochs = self._afterwards(configuration), range(configuration.training.epochs, 0, -1)
        fitting = next((count for count in epochs if not self._problem.out_of_time(count * each + after)), None)
        return None if fitting is None else configuration.shortened(fitting)

    def _afterwards(self, configuration: Configuration) -> float:
        """Return the seconds that answers to the held-out parts take, once a configuration is trained."""
        return configuration.length * self._pace * len(SHARES)

    def _fold(self, configuration: Configuration, number: int) -> Problem:
        """Return the problem of a fold, with the start's label words, and time kept for what comes after trainings."""
        own = fold_problem(self._problem, self._pool, self._folds, number)
        after = self._afterwards(configuration)
        own = replace(own, out_of_time=lambda reserve=0.0: self._problem.out_of_time(reserve + after))
        return configuration.first.label_words.chosen(own)

    def _cross_fitted(self, configuration: Configuration) -> CrossFit | None:
        begun = time.perf_counter()
        owns = [self._fold(configuration, number) for number in range(len(self._folds))]
        starts = [configuration.start_of(number).candidate(own) for number, own in enumerate(owns)]
        found = configuration.trained(list(zip(owns, starts, strict=True)))
        for number, own in enumerate(found):
            self._trace += [event | {"configuration": configuration.name, "fold": number} for event in own.trace]
        last = [own.best for own in found if own.best is not None]
        if len(last) < len(found):
            return None  # the time ended before the first epoch
        ways = {share: self._moved(starts, last, share) for share in SHARES}
        answers = {share: answers_of_folds(owns, own, self._folds) for share, own in ways.items()}
        share, held_out = self._taken(answers, configuration.name)
        candidates = [retasked(one, own, self._problem) for one, own in zip(ways[share], owns, strict=True)]
        name = configuration.name + ("" if share == 1 else f", {share:.0%} of the way")
        seconds = time.perf_counter() - begun
        return CrossFit(name, held_out, seconds, configuration, candidates, share, self)

    def _moved(self, starts: Sequence[Candidate], trained: Sequence[Candidate], share: float) -> list[Candidate]:
        embed = self._problem.backbone.embed
        return [part_of_the_way(start, end, share, embed) for start, end in zip(starts, trained, strict=True)]

    def _taken(self, answers: dict[float, HeldOut], name: str) -> tuple[float, HeldOut]:
        """Return the share of the way with the least held-out loss, after a temperature, and its answers.

        Raises:
            MethodError: the answers of none are numbers.
        """
        rated = {
            share: own.recalibrated(self._problem.seed).score.loss
            for share, own in answers.items()
            if bool(own.log_probs.isfinite().all())
        }
        if not rated:
            raise MethodError(f"{name}: the training diverged; its answers are not finite")
        share = min(rated, key=lambda known: rated[known])
        return share, answers[share]

    def on_all(self, configuration: Configuration, share: float) -> Candidate | None:
        """Return what a training on all examples makes; None where the time ended before its last epoch."""
        start = configuration.first
        own = start.label_words.chosen(self.whole)
        first = start.candidate(own)
        (found,) = configuration.trained([(replace(own, seed=derived_seed(own.seed, "refit")), first)])
        self._trace += [event | {"refit": 0} for event in found.trace]
        if found.best is None or found.epochs < configuration.training.epochs:
            return None  # how good it is, half trained, is not known
        return retasked(part_of_the_way(first, found.best, share, own.backbone.embed), own, self._problem)
