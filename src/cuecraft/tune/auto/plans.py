"""The presets: how much is tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cuecraft.search import AutoPrompt
from cuecraft.tune.auto.ladder import Configuration
from cuecraft.tune.auto.starts import SearchedPrompt, Words
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining


class Preset(StrEnum):
    """How much is tried: about one, some, and many minutes on a small model and a few dozen texts."""

    FAST = "fast"
    GOOD = "good"
    BEST = "best"


@dataclass(frozen=True)
class Plan:
    """What a preset means.

    Args:
        folds: of the cross-validation.
        cues: hand-written cues that are tried as starting words.
        searches_words: whether other label words are tried.
        deep_rates: learning rates of the deep cue, in the order in which they are tried.
        soft_rates: learning rates of prompt tuning.
        starts: how many of the best starting words are trained from, with the first rate.
        longer: tokens by which the starting words are made longer, tried with the first rate; 0 for not at all.
        searches_prompts: whether a discrete search is tried, whose words are then trained.
        keep: configurations that go on after the first fold, the second, and so on.
        epochs: of one training, at most.
        patience: epochs without a better held-out loss after which a training stops.
        members: trainings on all examples that are averaged in the end.
        examples: labelled examples that are used, at most.
    """

    folds: int
    cues: int
    searches_words: bool
    deep_rates: tuple[float, ...]
    soft_rates: tuple[float, ...]
    starts: int
    longer: int
    searches_prompts: bool
    keep: tuple[int, ...]
    epochs: int
    patience: int
    members: int
    examples: int


PLANS = {
    Preset.FAST: Plan(3, 8, False, (0.1, 0.03), (), 1, 0, False, (1,), 12, 3, 1, 192),
    Preset.GOOD: Plan(4, 24, True, (0.1, 0.03), (0.02,), 2, 4, False, (2, 2, 1), 20, 4, 3, 512),
    Preset.BEST: Plan(5, 48, True, (0.1, 0.03, 0.3, 0.01), (0.02, 0.005), 4, 6, True, (5, 3, 2, 1), 30, 6, 5, 2048),
}


def configurations(plan: Plan, starts: Sequence[Words], filler: Sequence[int]) -> list[Configuration]:
    """Return what is tried, the most promising first.

    Args:
        plan: the preset's.
        starts: starting words, the best first.
        filler: token ids to make starting words longer.
    """
    best, first = starts[0], plan.deep_rates[0]
    limits = {"epochs": plan.epochs, "patience": plan.patience}

    def deep(start: Words | SearchedPrompt, rate: float) -> Configuration:
        return Configuration(start, OffsetTraining(learning_rate=rate, **limits))

    found = [deep(best, rate) for rate in plan.deep_rates]
    found += [deep(start, first) for start in starts[1 : plan.starts]]
    found += [Configuration(best, EmbeddingTraining(learning_rate=rate, **limits)) for rate in plan.soft_rates]
    if plan.longer:
        longer = tuple(filler[n % len(filler)] for n in range(plan.longer))
        name = f"{best.name}, {plan.longer} tokens longer"
        found.append(deep(Words(name, best.label_words, (*longer, *best.token_ids)), first))
    if plan.searches_prompts:
        name = f"search from {best.name}"
        found.append(deep(SearchedPrompt(name, best.label_words, best.token_ids, AutoPrompt()), first))
    return found
