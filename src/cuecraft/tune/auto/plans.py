"""The presets: how much is tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cuecraft.search import AutoPrompt
from cuecraft.tune.auto.ladder import Configuration
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
        deep: schedules of the deep cue, in the order in which they are tried.
        farther: schedules of the deep cue whose steps add up to much more, tried later: few examples seldom need them.
        soft: schedules of prompt tuning.
        starts: how many starting words are trained from, with the first schedule.
        longer: tokens by which the starting words are made longer, tried with the first schedule; 0 for not at all.
        searches_prompts: whether a discrete search is tried, whose words are then trained.
        keep: configurations that go on after each round; the first round takes enough folds to tell them apart, each
            later one as many as all before it.
        checked: trainings whose average answers to each held-out part, of the configuration that is chosen.
        members: trainings on all examples that are averaged in the end.
        examples: labelled examples that are used, at most.
    """

    folds: int
    cues: int
    searches_words: bool
    deep: tuple[Schedule, ...]
    farther: tuple[Schedule, ...]
    soft: tuple[Schedule, ...]
    starts: int
    longer: int
    searches_prompts: bool
    keep: tuple[int, ...]
    checked: int
    members: int
    examples: int


PLANS = {
    Preset.FAST: Plan(
        folds=3,
        cues=8,
        searches_words=False,
        deep=(Schedule(0.1, 8), Schedule(0.03, 8)),
        farther=(),
        soft=(Schedule(0.02, 8),),
        starts=1,
        longer=0,
        searches_prompts=False,
        keep=(1,),
        checked=1,
        members=2,
        examples=192,
    ),
    Preset.GOOD: Plan(
        folds=4,
        cues=24,
        searches_words=True,
        deep=(Schedule(0.03, 16), Schedule(0.1, 8)),
        farther=(Schedule(0.1, 16),),
        soft=(Schedule(0.02, 8),),
        starts=2,
        longer=4,
        searches_prompts=False,
        keep=(3, 2, 2),
        checked=2,
        members=4,
        examples=512,
    ),
    Preset.BEST: Plan(
        folds=5,
        cues=48,
        searches_words=True,
        deep=(
            Schedule(0.03, 16),
            Schedule(0.1, 8),
            Schedule(0.03, 32),
        ),
        farther=(Schedule(0.1, 16), Schedule(0.3, 8), Schedule(0.1, 32)),
        soft=(Schedule(0.02, 8), Schedule(0.02, 16), Schedule(0.005, 16)),
        starts=4,
        longer=6,
        searches_prompts=True,
        keep=(5, 3, 2),
        checked=3,
        members=5,
        examples=2048,
    ),
}


def configurations(plan: Plan, starts: Sequence[Words], filler: Sequence[int]) -> list[Configuration]:
    """Return what is tried, the most promising first.

    Args:
        plan: the preset's.
        starts: starting words, the most promising first.
        filler: token ids to make starting words longer.
    """
    best, first = starts[0], plan.deep[0]

    def deep(start: Start, schedule: Schedule) -> Configuration:
        options = OffsetTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(start, options)

    def soft(start: Start, schedule: Schedule) -> Configuration:
        options = EmbeddingTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(start, options)

    found = [deep(best, schedule) for schedule in plan.deep] + [soft(best, schedule) for schedule in plan.soft]
    found += [deep(start, first) for start in starts[1 : plan.starts]]
    found += [deep(best, schedule) for schedule in plan.farther]
    if plan.longer:
        longer = tuple(filler[n % len(filler)] for n in range(plan.longer))
        name = f"{best.name}, {plan.longer} tokens longer"
        found.append(deep(Words(name, best.label_words, (*longer, *best.token_ids), differs=True), first))
    if plan.searches_prompts:
        name = f"search from {best.name}"
        found.append(deep(SearchedPrompt(name, best.label_words, best.token_ids, AutoPrompt()), first))
    if best.differs:
        found.append(Configuration(best, None))
    return found
