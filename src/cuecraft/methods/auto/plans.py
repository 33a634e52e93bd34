"""The presets: how much is tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cuecraft.methods.auto.crossfit import PASSES, SHARES, ByHead, Configuration
from cuecraft.methods.auto.starts import BarePrefix, SearchedPrompt, Start, Words
from cuecraft.methods.contrastive import ContrastiveTraining, PromptOf
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.soft import EmbeddingTraining


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
class AutoPlan:
    """What a preset means.

    Args:
        folds: of the cross-validation.
        cues: hand-written cues that are tried as starting words.
        searches_words: whether other label words are tried.
        heads: inverse penalties of class heads on starting words (scikit-learn's C).
        penalties: of first-order deep cues.
        first_order: starting words that class heads and first-order cues are fitted over, next to the untuned ones;
            0 for none at all.
        deep: schedules of the deep cue, in the order in which they are tried.
        soft: schedules of prompt tuning.
        alone: whether the best starting words alone are trained from too, these with tokens in front of them, and words
            that a discrete search finds.
        longer: tokens that are put in front of them.
        otherwise: the schedule where no first-order deep cue could be fitted, as to a model that has a class head only.
        contrastive: contrastive trainings of a prefix, for a model that has a class head only.
        examples: labelled examples that are used, at most.
        form: examples that the tokenizer's chat template is tried on.
        loop_folds: the same as `folds` where a training is all that can be tried; None for as many.
        tokens: that the training in place of a first-order deep cue may read of a language model's texts, all passes
            together, a backward pass counting twice; None for any number.
    """

    folds: int
    cues: int
    searches_words: bool
    heads: tuple[float, ...]
    penalties: tuple[float, ...]
    first_order: int
    deep: tuple[Schedule, ...]
    soft: tuple[Schedule, ...]
    alone: bool
    longer: int
    otherwise: Schedule
    contrastive: tuple[ContrastiveTraining, ...]
    examples: int
    form: int = 96
    loop_folds: int | None = None
    tokens: int | None = None


_HEADS = (0.01, 0.1, 1.0, 10.0, 100.0)
#: The same of heads on features of unit length.
UNIT_HEADS = (3.0, 10.0, 30.0, 100.0)
_FEWEST_EPOCHS = 2  # of a training that is worth its time
PREFIX_LENGTH = 8  # tokens that a contrastively trained prefix stands for


def _contrast(rate: float, epochs: int) -> ContrastiveTraining:
    return ContrastiveTraining(of=PromptOf.PREFIX, learning_rate=rate, epochs=epochs)


PLANS = {
    Preset.FAST: AutoPlan(
        folds=4,
        cues=0,
        searches_words=False,
        heads=_HEADS,
        penalties=(0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=1,
        deep=(),
        soft=(),
        alone=False,
        longer=0,
        otherwise=Schedule(0.1, 8),
        contrastive=(_contrast(0.05, 8),),
        examples=192,
        form=48,
        loop_folds=2,
        tokens=20_000,  # a minute of SmolLM2-135M on two cores
    ),
    Preset.GOOD: AutoPlan(
        folds=4,
        cues=12,
        searches_words=False,
        heads=_HEADS,
        penalties=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=1,
        deep=(Schedule(0.1, 12),),
        soft=(),
        alone=False,
        longer=0,
        otherwise=Schedule(0.1, 12),
        contrastive=(_contrast(0.05, 15),),
        examples=512,
    ),
    Preset.BEST: AutoPlan(
        folds=5,
        cues=48,
        searches_words=True,
        heads=_HEADS,
        penalties=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        first_order=4,
        deep=(Schedule(0.1, 16), Schedule(0.03, 16), Schedule(0.3, 8)),
        soft=(Schedule(0.02, 16),),
        alone=True,
        longer=6,
        otherwise=Schedule(0.1, 16),
        contrastive=(_contrast(0.05, 15), _contrast(0.02, 15), _contrast(0.1, 30)),
        examples=2048,
    ),
}


def within_tokens(plan: AutoPlan, each: float, folds: int) -> AutoPlan | None:
    """Return the plan with no more epochs than the tokens that it allows; None where these are too few to learn.

    Args:
        plan: the preset's.
        each: tokens that one pass over all examples reads.
        folds: how many prompts are trained side by side, each without one of them.
    """
    if plan.tokens is None or plan.deep:
        return plan
    epochs = int((plan.tokens / each - len(SHARES)) / (PASSES * (folds - 1)))
    if epochs < _FEWEST_EPOCHS:
        return None
    return replace(plan, otherwise=replace(plan.otherwise, epochs=min(epochs, plan.otherwise.epochs)))


def configurations(
    plan: AutoPlan, starts: Sequence[Words], filler: Sequence[int], has_linear: bool
) -> list[Configuration]:
    """Return what is trained, the most promising first.

    Args:
        plan: the preset's.
        starts: starting words, the most promising first.
        filler: token ids to make starting words longer.
        has_linear: whether a first-order deep cue is there to ship.
    """
    best, own_task = starts[0], starts[0].has_own_task
    schedules = plan.deep or (() if has_linear else (plan.otherwise,))
    several = tuple(start for start in starts[: plan.folds] if start.has_own_task == own_task)

    def deep(schedule: Schedule, *own: Start) -> Configuration:
        options = OffsetTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(own, options)

    def soft(schedule: Schedule, *own: Start) -> Configuration:
        options = EmbeddingTraining(learning_rate=schedule.rate, epochs=schedule.epochs, schedule="linear")
        return Configuration(own, options)

    found = [deep(schedule, *several) for schedule in schedules] + [soft(schedule, *several) for schedule in plan.soft]
    for first in schedules[:1] if plan.alone else ():
        if len(several) > 1:
            found.append(deep(first, best))
        longer = tuple(filler[n % len(filler)] for n in range(plan.longer))
        name = f"{best.name}, {plan.longer} tokens longer"
        found.append(deep(first, Words(name, best.label_words, (*longer, *best.token_ids), differs=True)))
        name = f"search from {best.name}"
        found.append(deep(first, SearchedPrompt(name, best.label_words, best.token_ids, AutoPrompt())))
    return found


def contrasts(plan: AutoPlan, start: BarePrefix) -> list[Configuration]:
    """Return the contrastive trainings of a prefix, in the order in which they are tried."""
    return [Configuration((start,), training, ByHead(UNIT_HEADS)) for training in plan.contrastive]
