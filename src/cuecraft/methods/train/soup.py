"""Soups: the average of several trained prompts, where it helps (Wortsman et al., ICML 2022, arXiv 2203.05482).

All members start from the same words and see the examples in different orders, so they stay near enough to each other
to be averaged. The greedy soup of the paper's section 2 takes them from the best on dev to the worst, and keeps one
only where the average with it has a smaller dev loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.core.errors import MethodError
from cuecraft.core.events import TrainStep
from cuecraft.core.seeding import derived_seed
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem, Selection, score
from cuecraft.methods.search.space import filled_start
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.soft import EmbeddingTraining
from cuecraft.methods.untuned import begin


class Soup(Method):
    """Several trainings from one start, and the greedy average of what they found."""

    name: ClassVar[str] = "soup"
    weighs_examples: ClassVar[bool] = True

    members: int = Field(3, ge=2, description="trainings, each with an order of examples of its own")
    of: Literal["tune", "deep"] = Field("deep", description="what is trained and averaged: `tune` or `deep`")
    tune: EmbeddingTraining = Field(default_factory=EmbeddingTraining, description="options of prompt tuning")
    deep: OffsetTraining = Field(default_factory=OffsetTraining, description="options of the deep cue")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train the members, then average greedily; the best on dev wins, members and untuned prompt included."""
        untuned, selection = begin(problem, self.calibration)
        with problem.in_time():
            start = filled_start(problem, untuned, None, self.calibration)
            self._stir(problem, self._members(problem, start, selection), selection)
        return selection.outcome(untuned)

    def _members(self, problem: Problem, start: Candidate, selection: Selection) -> list[tuple[float, int, Candidate]]:
        """Train the members; return loss, number and candidate of each, the best first."""
        training = self.tune if self.of == "tune" else self.deep
        found = []
        for number in range(self.members):
            if number and problem.out_of_time():
                break
            own = replace(problem, seed=derived_seed(problem.seed, f"soup/{number}"))
            member = Selection(own)
            training.refine(own, start, member)
            if member.best is None or member.best_score is None:  # the time ended before its first step was seen
                break
            selection.trace += [event | {"member": number} for event in member.trace]
            found.append((member.best_score.loss, number, member.best))
            train = score(problem.backbone, member.best, problem.train)
            dev = member.best_score if problem.dev else None
            selection.see(member.best, train, TrainStep("member", number), dev)
        return sorted(found, key=lambda entry: entry[:2])

    def _stir(self, problem: Problem, members: Sequence[tuple[float, int, Candidate]], selection: Selection) -> None:
        """Add one member after the other, the best first, to the average, and keep those that make it better."""
        if not members:
            return
        loss, _, first = members[0]
        kept = [first]
        for step, (_, _, member) in enumerate(members[1:], start=1):
            mixed = average([*kept, member])
            selection.see(mixed, score(problem.backbone, mixed, problem.train), TrainStep("soup", step))
            assert selection.last_score is not None
            if selection.last_score.loss < loss:
                kept.append(member)
                loss = selection.last_score.loss


def average(candidates: Sequence[Candidate]) -> Candidate:
    """Return the mean of candidates that were trained from one start: of vectors, offsets, prefixes and class heads."""
    first, *others = candidates
    mean = first.prompt.mapped(lambda *own: torch.stack(own).mean(0), *(other.prompt for other in others))
    return replace(first, prompt=mean)


def part_of_the_way(start: Candidate, trained: Candidate, share: float, embed: Callable[[Tensor], Tensor]) -> Candidate:
    """Return the candidate that lies a share of the way from a start to what was trained from it.

    Between a model and its fine-tuned self there are often better ones than either (WiSE-FT, Wortsman et al., CVPR
    2022, arXiv 2109.01903). Here it is the prompt that moves: its vectors or offsets, and its class head.

    Args:
        start: where training started.
        trained: a soft prompt, or a deep cue or prefix over the start's base.
        share: 0 for the start, 1 for what was trained.
        embed: looks token ids up.
    """
    first, last = start.prompt, trained.prompt
    begun = replace(
        first,
        tokens=first.vectors(embed) if isinstance(last.tokens, Tensor) else last.tokens,
        offsets=torch.zeros_like(last.offsets) if first.offsets is None and last.offsets is not None else first.offsets,
    )
    if begun.kind != last.kind:
        raise MethodError(f"a {last.kind} prompt has no way from a {first.kind} one; give one that was trained from it")
    if first.head is None:
        begun = begun.with_head(last.head)
    moved = begun.mapped(lambda own, other: torch.lerp(own.to(other.dtype), other, share), last)
    return replace(trained, prompt=moved)
