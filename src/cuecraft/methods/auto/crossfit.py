"""Cross-fitting: a prompt is trained without each fold, answers to it, and all of these prompts ship together.

The trainings go on side by side, so that their batches share passes. No training is made again on all examples: the
prompts of F folds have seen each of them F - 1 times between them, and several prompts answer better than one (Lester
et al., EMNLP 2021, section 6). What one prompt answers to the part that it did not see says how good they are, on the
safe side: their mean is better than one of them is on average, since log-loss is convex.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from cuecraft.backbone import FeatureScale
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Document
from cuecraft.core.seeding import derived_seed
from cuecraft.core.storage import digest
from cuecraft.methods.auto.contenders import Contender
from cuecraft.methods.auto.starts import Start, retasked
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive.training import ContrastiveTraining
from cuecraft.methods.gradients import features_of
from cuecraft.methods.held_out import Fold, HeldOut, answers_of_folds, fold_problem, gather
from cuecraft.methods.problem import Labelled, Problem
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.loop import Latest
from cuecraft.methods.train.soft import EmbeddingTraining
from cuecraft.methods.train.soup import part_of_the_way

#: Of the way from a start to what was trained: on few examples the whole way is often too far.
SHARES = (0.5, 0.75, 1.0)
HEAD_SHARES = (0.25, 0.5, 0.75, 1.0)  # with a class head that is fitted there
PASSES = 3.5  # that an epoch costs for each example: forward, backward, and what a smaller batch costs more
_SURPRISES = 1.2  # times as long as it is expected to take


@dataclass(frozen=True)
class Way:
    """What becomes of what was trained.

    Args:
        share: of the way from the start that is taken.
        inverse_penalty: of a class head that is fitted then (scikit-learn's C); None where none is.
    """

    share: float
    inverse_penalty: float | None = None

    @property
    def title(self) -> str:
        """As shown behind a configuration's name."""
        head = "" if self.inverse_penalty is None else f", class head {self.inverse_penalty:g}"
        return head + ("" if self.share == 1 else f", {self.share:.0%} of the way")


@dataclass(frozen=True)
class Ends:
    """What was trained on folds.

    Args:
        pool: all labelled examples.
        folds: which of them are held out in turn.
        problems: of the folds; the dev set of each is its held-out part.
        starts: where the training of each started.
        trained: where it ended.
    """

    pool: Labelled
    folds: Sequence[Fold]
    problems: Sequence[Problem]
    starts: Sequence[Candidate]
    trained: Sequence[Candidate]

    def moved(self, share: float) -> list[Candidate]:
        """Return the candidates of the folds that lie a share of the way."""
        embed = self.problems[0].backbone.embed
        return [part_of_the_way(start, end, share, embed) for start, end in zip(self.starts, self.trained, strict=True)]


class AnswerForm(ABC):
    """How what was trained answers."""

    @abstractmethod
    def passes(self, folds: int) -> int:
        """Return the passes over all examples that answers to the held-out parts take."""

    @abstractmethod
    def held_out(self, ends: Ends) -> dict[Way, HeldOut]:
        """Return what the prompts of the folds answer to the parts that they did not see, by the way taken."""

    @abstractmethod
    def loss(self, held_out: HeldOut, seed: int) -> float:
        """Return the loss by which ways are compared; `seed` is of folds that fit a temperature."""

    @abstractmethod
    def candidates(self, ends: Ends, way: Way) -> list[Candidate]:
        """Return what ships of each fold."""

    @abstractmethod
    def on_all(self, problem: Problem, start: Candidate, trained: Candidate, way: Way) -> Candidate:
        """Return what ships of a training on all examples, those of the problem."""


class AsTrained(AnswerForm):
    """By label words, or by the class head that was trained too."""

    def passes(self, folds: int) -> int:
        """Return one for each share of the way."""
        return len(SHARES)

    def held_out(self, ends: Ends) -> dict[Way, HeldOut]:
        """Return the answers at each share of the way."""
        return {Way(share): answers_of_folds(ends.problems, ends.moved(share), ends.folds) for share in SHARES}

    def loss(self, held_out: HeldOut, seed: int) -> float:
        """Return the loss after a temperature: what was trained on few examples is too sure of itself."""
        return held_out.recalibrated(seed).score.loss

    def candidates(self, ends: Ends, way: Way) -> list[Candidate]:
        """Return the candidates that lie a share of the way."""
        return ends.moved(way.share)

    def on_all(self, problem: Problem, start: Candidate, trained: Candidate, way: Way) -> Candidate:
        """Return the candidate that lies a share of the way."""
        return part_of_the_way(start, trained, way.share, problem.backbone.embed)


@dataclass(frozen=True)
class ByHead(AnswerForm):
    """By a class head that is fitted afterwards to features of unit length.

    What answers to a held-out part is fitted without it. What ships is fitted to all examples, so each head has seen
    features of texts that its prompt was not trained on.

    Args:
        inverse_penalties: values of scikit-learn's C that are tried.
    """

    inverse_penalties: tuple[float, ...]

    def passes(self, folds: int) -> int:
        """Return one for each share of the way and fold, and one for the heads that ship."""
        return (len(HEAD_SHARES) + 1) * folds

    @torch.no_grad()
    def held_out(self, ends: Ends) -> dict[Way, HeldOut]:
        """Return the answers at each share of the way with each penalty."""
        found = {}
        for share in HEAD_SHARES:
            features = [features_of(ends.problems[0].backbone, one, ends.pool) for one in ends.moved(share)]
            for penalty in self.inverse_penalties:
                parts = []
                for fold, own in zip(ends.folds, features, strict=True):
                    head = ends.pool.select(fold.train).fitted_head(own[fold.train], penalty, FeatureScale.UNIT)
                    parts.append(ends.pool.golds.objective.by_head(own[fold.held_out], head))
                found[Way(share, penalty)] = gather(parts, ends.pool.golds, ends.folds)
        return found

    def loss(self, held_out: HeldOut, seed: int) -> float:
        """Return the loss as it is: the penalty sets how sure a head is, and a temperature would hide too strong ones.

        After one, held-out answers of TREC preferred C = 1 to 10. On 250 rows of other splits four prompts with heads
        of C = 1 have .812 of the answers right, with a log-loss of .595; of C = 10 .820 and .425.
        """
        return held_out.score.loss

    def candidates(self, ends: Ends, way: Way) -> list[Candidate]:
        """Return the prompts that lie a share of the way, with heads that are fitted to all examples."""
        return [self._headed(ends.problems[0], one, ends.pool, way) for one in ends.moved(way.share)]

    def on_all(self, problem: Problem, start: Candidate, trained: Candidate, way: Way) -> Candidate:
        """Return the prompt that lies a share of the way, with a head."""
        moved = part_of_the_way(start, trained, way.share, problem.backbone.embed)
        return self._headed(problem, moved, problem.train, way)

    @torch.no_grad()
    def _headed(self, problem: Problem, candidate: Candidate, data: Labelled, way: Way) -> Candidate:
        assert way.inverse_penalty is not None
        features = features_of(problem.backbone, candidate, data)
        head = data.fitted_head(features, way.inverse_penalty, FeatureScale.UNIT)
        return replace(candidate, prompt=candidate.prompt.with_head(head))


@dataclass(frozen=True)
class Configuration:
    """What the trainings on folds do.

    Args:
        starts: where they start, in turn; all with the same label words.
        training: the kind of training and its options.
        answering: how what was trained answers.
    """

    starts: tuple[Start, ...]
    training: OffsetTraining | EmbeddingTraining | ContrastiveTraining
    answering: AnswerForm = field(default_factory=AsTrained)

    @property
    def name(self) -> str:
        """As shown."""
        names = ", ".join(start.name for start in self.starts)
        return f"{self.training.title}, {names}"

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


@dataclass(eq=False)
class CrossFit(Contender):
    """A configuration, trained without each fold.

    Args:
        configuration: what was trained.
        candidates: of each fold, the prompt that did not see it, as far from its start as is best.
        way: how far from the start they lie, and how they answer.
        trainings: that made it.
    """

    configuration: Configuration
    candidates: list[Candidate]
    way: Way
    trainings: Trainings

    @property
    def share(self) -> float:
        """Of the way from the start that its prompts lie."""
        return self.way.share

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
        return self.trainings.on_all(self.configuration, self.way)

    def fallback(self) -> Candidate:
        """Return the prompt that did not see the first fold."""
        return self.candidates[0]

    def words(self) -> Candidate:
        """Return the words that it starts from, calibrated on all examples."""
        return self.configuration.first.on(self.trainings.whole)


def tokens_of(pool: Labelled, length: float) -> float:
    """Return how many tokens a pass reads of each example with a prompt of some length, on average; 1 at least.

    Of texts that were read before and kept, it reads the prompt and the options that they bring. Texts without content
    that options are compared with count as further texts.
    """
    context = pool.context.whole
    texts = sum(len(piece) for piece, kept in zip(context.pieces, context.states, strict=True) if kept is None)
    options = sum(len(ids) for own in context.own or () for words in own for ids in words)
    return max(1.0, (length * len(context) + texts + options) / len(pool))


class Trainings:
    """Trains configurations on folds, as far as there is time.

    Args:
        problem: what is solved.
        pool: all labelled examples.
        folds: which of them are held out in turn.
        pace: seconds that one pass over all examples takes, for each token that it reads of one (`tokens_of`).
        most: prompts that may ship, at most.
        trace: takes the events of all trainings.
    """

    def __init__(
        self, problem: Problem, pool: Labelled, folds: Sequence[Fold], pace: float, most: int, trace: list[Document]
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
        trained = learnt + (not self.folds_ship(configuration))
        each = self._pass(configuration) * PASSES * trained
        after, epochs = self._afterwards(configuration), range(configuration.training.epochs, 0, -1)
        fitting = next((count for count in epochs if not self._problem.out_of_time(count * each + after)), None)
        return None if fitting is None else configuration.shortened(fitting)

    def _afterwards(self, configuration: Configuration) -> float:
        """Return the seconds that answers to the held-out parts take, once a configuration is trained."""
        return self._pass(configuration) * configuration.answering.passes(len(self._folds))

    def _pass(self, configuration: Configuration) -> float:
        """Return the seconds that one pass over all examples takes."""
        return tokens_of(self._pool, configuration.length) * self._pace

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
        ends = Ends(self._pool, self._folds, owns, starts, last)
        way, held_out = self._taken(configuration, configuration.answering.held_out(ends))
        made = configuration.answering.candidates(ends, way)
        candidates = [retasked(one, own, self._problem) for one, own in zip(made, owns, strict=True)]
        name, seconds = configuration.name + way.title, time.perf_counter() - begun
        return CrossFit(name, held_out, seconds, configuration, candidates, way, self)

    def _taken(self, configuration: Configuration, answers: dict[Way, HeldOut]) -> tuple[Way, HeldOut]:
        """Return the way with the least held-out loss, and its answers.

        Raises:
            MethodError: the answers of none are numbers.
        """
        rated = {
            way: configuration.answering.loss(own, self._problem.seed)
            for way, own in answers.items()
            if bool(own.scores.losses.isfinite().all())
        }
        if not rated:
            raise MethodError(f"{configuration.name}: the training diverged; its answers are not finite")
        way = min(rated, key=lambda known: rated[known])
        return way, answers[way]

    def on_all(self, configuration: Configuration, way: Way) -> Candidate | None:
        """Return what a training on all examples makes; None where the time ended before its last epoch."""
        start = configuration.first
        own = start.label_words.chosen(self.whole)
        first = start.candidate(own)
        (found,) = configuration.trained([(replace(own, seed=derived_seed(own.seed, "refit")), first)])
        self._trace += [event | {"refit": 0} for event in found.trace]
        if found.best is None or found.epochs < configuration.training.epochs:
            return None  # how good it is, half trained, is not known
        return retasked(configuration.answering.on_all(own, first, found.best, way), own, self._problem)
