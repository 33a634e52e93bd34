"""The presets: how much is tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cuecraft.search import AutoPrompt
from cuecraft.tune.auto.crossfit import Configuration
from cuecraft.tune.auto.starts import SearchedPrompt, Start, Words
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining


class Preset(StrEnum):
    """How much is tried: about one, some, and many minutes on a small model and a few dozen texts."""

    FAST = "fast"
    GOOD = "good"
    BEST = "best"


@dataclass(frozen=True)
class Schedule:
    """How one training goes; its learning rate falls to zero over all epochs.

    Args:
        rate: of the first step, in units of the embeddings' RMS.
        epochs: passes over the examples.
    """

    rate: float
    epochs: int


@dataclass(frozen=True)
class Plan:
    """What a preset means.

    Args:
        folds: of the cross-validation.
        cues: hand-written cues that are tried as starting words.
        searches_words: whether other label words are tried.
        heads: inverse penalties of class heads on starting words (scikit-learn's C).
        penalties: of first-order deep cues.
        first_order: starting words that class heads and first-order deep cues are fitted over.
        deep: schedules of the deep cue, in the order in which they are tried.
        soft: schedules of prompt tuning.
        starts: how many starting words are trained from, with the first schedule.
        longer: tokens by which the starting words are made longer, tried with the first schedule; 0 for not at all.
        searches_prompts: whether a discrete search is tried, whose words are then trained.
        otherwise: the schedule where no first-order deep cue could be fitted, as to a model that has a class head only.
        examples: labelled examples that are used, at most.
    """

    folds: int
    cues: int
    searches_words: bool
    heads: tuple[float, ...]
    penalties: tuple[float, ...]
    first_order: int
    deep: tuple[Schedule, ...]
    soft: tuple[Schedule, ...]
    starts: int
    longer: int
    searches_prompts: bool
    otherwise: Schedule
    examples: int


_HEADS = (0.01, 0.1, 1.0, 10.0, 100.0)

PLANS = {
    Preset.FAST: Plan(
        folds=4,
        cues=0,
        searches_words=False,
        heads=_HEADS,
        penalties=(0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=1,
        deep=(),
        soft=(),
        starts=1,
        longer=0,
        searches_prompts=False,
        otherwise=Schedule(0.1, 8),
        examples=192,
    ),
    Preset.GOOD: Plan(
        folds=4,
        cues=12,
        searches_words=False,
        heads=_HEADS,
        penalties=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=1,
        deep=(Schedule(0.1, 12),),
        soft=(),
        starts=1,
        longer=0,
        searches_prompts=False,
        otherwise=Schedule(0.1, 12),
        examples=512,
    ),
    Preset.BEST: Plan(
        folds=5,
        cues=48,
        searches_words=True,
        heads=_HEADS,
        penalties=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=4,
        deep=(Schedule(0.1, 16), Schedule(0.03, 16), Schedule(0.3, 8)),
        soft=(Schedule(0.02, 16),),
        starts=3,
        longer=6,
        searches_prompts=True,
        otherwise=Schedule(0.1, 16),
        examples=2048,
    ),
}


def configurations(plan: Plan, starts: Sequence[Words], filler: Sequence[int], has_linear: bool) -> list[Configuration]:
    """Return what is trained, the most promising first.

    Args:
        plan: the preset's.
        starts: starting words, the most promising first.
        filler: token ids to make starting words longer.
        has_linear: whether a first-order deep cue is there to ship.
    """
    best = starts[0]
    schedules = plan.deep or (() if has_linear else (plan.otherwise,))

    def deep(start: Start, schedule: Schedule) -> Configuration:
        options = OffsetTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(start, options)

    def soft(start: Start, schedule: Schedule) -> Configuration:
        options = EmbeddingTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(start, options)

    found = [deep(best, schedule) for schedule in schedules] + [soft(best, schedule) for schedule in plan.soft]
    for first in schedules[:1]:
        found += [deep(start, first) for start in starts[1 : plan.starts]]
        if plan.longer:
            longer = tuple(filler[n % len(filler)] for n in range(plan.longer))
            name = f"{best.name}, {plan.longer} tokens longer"
            found.append(deep(Words(name, best.label_words, (*longer, *best.token_ids), differs=True), first))
        if plan.searches_prompts:
            name = f"search from {best.name}"
            found.append(deep(SearchedPrompt(name, best.label_words, best.token_ids, AutoPrompt()), first))
    return found
