"""What may ship, each with what it answers to examples that it did not learn from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cuecraft.backbone import FeatureScale
from cuecraft.core.deadline import WhileTimeLasts
from cuecraft.methods.auto.starts import Start
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Tried
from cuecraft.methods.held_out import Fold, HeldOut, gather
from cuecraft.methods.problem import Problem
from cuecraft.methods.train.probe import scaled_head


@dataclass(eq=False)
class Contender(ABC):
    """Something that may ship.

    Args:
        name: as shown.
        held_out: what it answers to each held-out part, learnt without it.
        seconds: spent on it.
    """

    name: str
    held_out: HeldOut
    seconds: float
    _tempered: dict[int, HeldOut] = field(
        default_factory=dict, init=False, repr=False
    )  # by seed: it is asked for often

    @property
    @abstractmethod
    def members(self) -> int:
        """How many prompts would ship."""

    @property
    @abstractmethod
    def joins(self) -> bool:
        """Whether its prompts can answer together with those of another: the backbone reads them, with one task."""

    @abstractmethod
    def made(self) -> Candidate | None:
        """Return what ships, made of all examples; None where it cannot be made as it was checked."""

    @abstractmethod
    def words(self) -> Candidate:
        """Return the words that it starts from, calibrated on all examples."""

    def fallback(self) -> Candidate | None:
        """Return what ships where the time ends while it is made; None where nothing is there."""
        return None

    def shipped(self, in_time: Callable[[], WhileTimeLasts]) -> Candidate | None:
        """Return what ships, with the temperature of its held-out answers; None where the time ends before.

        Args:
            in_time: makes a context that ends with the time (`Problem.in_time`).
        """
        found: Candidate | None = None
        with in_time():
            found = self.made()
        found = found or self.fallback()
        return found and found.then(self.held_out.calibration())

    def answers(self, seed: int) -> HeldOut:
        """Return what it answers to held-out examples, after a temperature; `seed` is of the folds that fit that."""
        if seed not in self._tempered:
            self._tempered[seed] = self.held_out.recalibrated(seed)
        return self._tempered[seed]

    def tried(self, seed: int) -> Tried:
        """Return its line of the leaderboard; `seed` as for `answers`."""
        return self.answers(seed).tried(self.name, self.seconds)


@dataclass(eq=False)
class OverWords(Contender):
    """One prompt over starting words.

    Args:
        start: the words.
        whole: the problem with all examples to learn from.
    """

    start: Start
    whole: Problem

    @property
    def members(self) -> int:
        """One."""
        return 1

    @property
    def joins(self) -> bool:
        """Whether the label words are the task's own."""
        return self.start.has_own_task

    def words(self) -> Candidate:
        """Return the words, calibrated on all examples."""
        return self.start.on(self.whole)


@dataclass(eq=False)
class WordsAlone(OverWords):
    """Starting words as they are, calibrated."""

    def made(self) -> Candidate:
        """Return the words, calibrated on all examples."""
        return self.words()


@dataclass(eq=False)
class FirstOrderCue(OverWords):
    """A first-order deep cue, with the penalty of least held-out loss.

    Args:
        penalty: the one that was chosen.
        fitted: the fit to all examples.
    """

    penalty: float
    fitted: Candidate

    def made(self) -> Candidate:
        """Return the fit to all examples."""
        return self.fitted

    def fallback(self) -> Candidate:
        """Return the same: nothing is left to do."""
        return self.fitted


@dataclass(eq=False)
class ProbedWords(OverWords):
    """A class head on the features that starting words lead to, with the penalty of least held-out loss.

    Args:
        features: `[N, d]` of all examples.
        inverse_penalty: the one that was chosen.
        scale: what becomes of features before the head reads them; plain ones are brought to an RMS of 1.
    """

    features: Tensor
    inverse_penalty: float
    scale: FeatureScale = FeatureScale.PLAIN

    def made(self) -> Candidate:
        """Return the words with a head that is fitted to all examples."""
        head = scaled_head(self.whole.train, self.features, self.inverse_penalty, self.scale)
        return Candidate(self.start.bare(self.whole).with_head(head), self.whole.objective.plain())


@torch.no_grad()
def probed(
    whole: Problem,
    start: Start,
    folds: Sequence[Fold],
    inverse_penalties: Sequence[float],
    scale: FeatureScale = FeatureScale.PLAIN,
) -> ProbedWords:
    """Fit class heads to the features of starting words, without each fold in turn.

    Args:
        whole: the problem with all examples to learn from.
        start: the words, with the task's own label words.
        folds: which examples are held out in turn.
        inverse_penalties: values of scikit-learn's C; the one of least held-out loss is taken.
        scale: what becomes of features before the head reads them; plain ones are brought to an RMS of 1.

    Raises:
        MethodError: the features are all zero.
    """
    begun = time.perf_counter()
    data = whole.train
    features = whole.backbone.features(data.context, start.bare(whole)).float()

    def answers(inverse_penalty: float) -> HeldOut:
        parts = []
        for fold in folds:
            head = scaled_head(data.select(fold.train), features[fold.train], inverse_penalty, scale)
            parts.append(whole.objective.by_head(features[fold.held_out], head))
        return gather(parts, data.golds, folds)

    rated = {strength: answers(strength) for strength in inverse_penalties}
    best = min(rated, key=lambda strength: rated[strength].score.loss)
    seconds = time.perf_counter() - begun
    return ProbedWords(f"class head {best:g}, {start.name}", rated[best], seconds, start, whole, features, best, scale)


@dataclass(eq=False)
class Together(Contender):
    """Prompts of several contenders, whose probabilities are averaged; each has its own temperature.

    Args:
        parts: the contenders.
    """

    parts: Sequence[Contender]

    @classmethod
    def of(cls, parts: Sequence[Contender], seed: int) -> Together:
        """Join contenders; every prompt that would ship counts alike."""
        shares = torch.tensor([float(part.members) for part in parts], dtype=torch.float64)
        first, values = parts[0].held_out, torch.stack([part.answers(seed).values for part in parts])
        name = "together: " + "; ".join(part.name for part in parts)
        joined = replace(first, values=first.golds.objective.mixed(values, shares)).cross_decided(seed)
        return cls(name, joined, 0.0, parts)

    @property
    def members(self) -> int:
        """As many as its parts have."""
        return sum(part.members for part in self.parts)

    @property
    def joins(self) -> bool:
        """Always."""
        return True

    def made(self) -> Candidate | None:
        """Return nothing: each part is made by itself."""
        return None

    def shipped(self, in_time: Callable[[], WhileTimeLasts]) -> Candidate | None:
        """Return the prompts of all parts that are made in time, each with the temperature of its part."""
        found = [part.shipped(in_time) for part in self.parts]
        made = [own for own in found if own is not None]
        return made[0].joined_by(made[1:]) if made else None

    def answers(self, seed: int) -> HeldOut:
        """Return what it answers to held-out examples; its parts have their temperatures."""
        return self.held_out

    def words(self) -> Candidate:
        """Return the words that its first part starts from."""
        return self.parts[0].words()
