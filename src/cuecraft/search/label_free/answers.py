"""What prompts answer to texts without labels, and how these answers are calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from cuecraft.backbone import Context
from cuecraft.backbone.words import cue_log_likelihood
from cuecraft.method import Problem
from cuecraft.predictor import Candidate, finite
from cuecraft.prompts import Calibration, HardPrompt
from cuecraft.prompts.calibration import dividing_offsets, matching_offsets
from cuecraft.search.label_free.selectors import recalibrated
from cuecraft.task import Example
from cuecraft.untuned import CONTENT_FREE

Ids = tuple[int, ...]
_TEXTS_AT_A_TIME = 64  # between two looks at the clock
_FLUENCY_TEXTS = 16  # how likely a cue is as text differs little from text to text


class LabelFreeCalibration(StrEnum):
    """How answers are corrected without labels, for the choice and in the artifact.

    `marginal` divides by the mean answer to the texts (CBM; also batch calibration, arXiv 2309.17249); `matched` makes
    that mean exactly the classes' shares; `contextual` divides by the mean answer to texts without content; `pmi` by
    the answer to a domain premise, for which the field's own name stands in the text's place.
    """

    NONE = "none"
    MARGINAL = "marginal"
    MATCHED = "matched"
    CONTEXTUAL = "contextual"
    PMI = "pmi"


@dataclass(frozen=True, eq=False)
class Answers:
    """What T prompts answer to X texts, as logits of Y classes.

    Args:
        prompts: `[T]` token ids.
        logits: `[T, X, Y]` float64.
        offsets: `[T, Y]` each prompt's calibration.
        fluency: `[T]` the mean log-probability (nats) of a cue's tokens behind a text; -inf for a cue without tokens.
    """

    prompts: tuple[Ids, ...]
    logits: Tensor
    offsets: Tensor
    fluency: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Calibrated probabilities `[T, X, Y]`."""
        return recalibrated(self.logits, self.offsets)

    def candidate(self, number: int) -> Candidate:
        """Return a prompt with its calibration."""
        bias = tuple(self.offsets[number].tolist())
        return Candidate(HardPrompt(self.prompts[number]), Calibration(bias))

    def select(self, numbers: Sequence[int]) -> Answers:
        """Return some of the prompts."""
        rows = list(numbers)
        prompts = tuple(self.prompts[n] for n in rows)
        return Answers(prompts, self.logits[rows], self.offsets[rows], self.fluency[rows])

    def joined(self, other: Answers) -> Answers:
        """Return these prompts and then others, over the same texts."""
        parts = [(self.logits, other.logits), (self.offsets, other.offsets), (self.fluency, other.fluency)]
        return Answers(self.prompts + other.prompts, *(torch.cat(part) for part in parts))


@dataclass(frozen=True, eq=False)
class Panel:
    """The texts that prompts are asked about.

    Args:
        problem: gives backbone and task.
        context: the texts.
        calibration: of each prompt's answers.
        prior: `[Y]` the classes' shares.
    """

    problem: Problem
    context: Context
    calibration: LabelFreeCalibration
    prior: Tensor

    @torch.no_grad()
    def ask(self, prompts: Sequence[Ids]) -> Answers:
        """Return what prompts answer to all texts.

        Raises:
            BackboneError: the model answers with NaN or infinity.
            PromptError: a prompt does not fit behind a text.
        """
        return self._answers(prompts, torch.cat(list(self._parts(prompts)), dim=1))

    @torch.no_grad()
    def ask_in_time(self, prompts: Sequence[Ids]) -> tuple[Answers, Panel]:
        """Return the same, and the panel of the texts that were read until the problem's time was up.

        Where that was too little for the first texts, the first prompt alone answers to one text.
        """
        parts: list[Tensor] = []
        done = 0
        with self.problem.in_time():
            for part in self._parts(prompts):
                parts.append(part)
                done += part.shape[1]
                self.problem.report({"phase": "label-free", "step": done, "total": len(self.context)})
                if self.problem.out_of_time():
                    break
        if not parts:
            prompts, done = prompts[:1], 1
            parts = [self._logits(self.context.select([0]), prompts)]
        read = Panel(self.problem, self.context.select(range(done)), self.calibration, self.prior)
        return read._answers(prompts, torch.cat(parts, dim=1)), read

    def _parts(self, prompts: Sequence[Ids]) -> Iterator[Tensor]:
        """Yield logits `[T, x, Y]` of a few texts after another."""
        for start in range(0, len(self.context), _TEXTS_AT_A_TIME):
            yield self._logits(
                self.context.select(range(start, min(start + _TEXTS_AT_A_TIME, len(self.context)))), prompts
            )

    def _logits(self, context: Context, prompts: Sequence[Ids]) -> Tensor:
        backbone = self.problem.backbone
        logits = backbone.class_logits_many(context, [HardPrompt(ids) for ids in prompts])
        return finite(logits, backbone).cpu().double()

    def _answers(self, prompts: Sequence[Ids], logits: Tensor) -> Answers:
        return Answers(tuple(prompts), logits, self._offsets(prompts, logits), self._fluency(prompts))

    def _offsets(self, prompts: Sequence[Ids], logits: Tensor) -> Tensor:
        if self.calibration is LabelFreeCalibration.NONE:
            return torch.zeros_like(logits[:, 0])
        if self.calibration is LabelFreeCalibration.MARGINAL:
            return dividing_offsets(logits, self.prior)
        if self.calibration is LabelFreeCalibration.MATCHED:
            return matching_offsets(logits, self.prior)
        names = self.problem.task.template.field_names
        premise = {name: name for name in names}
        is_pmi = self.calibration is LabelFreeCalibration.PMI
        texts = [premise] if is_pmi else [dict.fromkeys(names, text) for text in CONTENT_FREE]
        context = self.problem.backbone.context([Example(fields) for fields in texts], self.problem.task)
        return dividing_offsets(self._logits(context, prompts), self.prior)

    def _fluency(self, prompts: Sequence[Ids]) -> Tensor:
        written = [n for n, ids in enumerate(prompts) if ids]
        found = torch.full((len(prompts),), -math.inf, dtype=torch.float64)
        if written:
            few = self.context.select(range(min(_FLUENCY_TEXTS, len(self.context))))
            likely = cue_log_likelihood(self.problem.backbone, [prompts[n] for n in written], few)
            found[written] = likely.cpu().double()
        return found
