"""Candidates: prompts that compete, each with its calibration; what reads for them; and their answers to texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cuecraft.artifact import CalibratedPrompt, Calibration, Prompt
from cuecraft.artifact.calibration import AnswersTogether
from cuecraft.artifact.predictor import FRESH, finite
from cuecraft.artifact.words import WORDS_FRESH, word_decisions
from cuecraft.backbone import AnyBackbone, Context
from cuecraft.backbone.budget import same_width
from cuecraft.backbone.words import PromptTexts
from cuecraft.core.events import Answered, Event
from cuecraft.methods.objectives import Objective, objective_of
from cuecraft.task import AnswerSpace, Decision, Example, Task


class Reader(Protocol):
    """A backbone of a candidate's own: other weights, or another model."""

    backbone: AnyBackbone
    name: str

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what an artifact has to store of it."""
        ...

    def over(self, context: Context) -> AbstractContextManager[tuple[AnyBackbone, Context]]:
        """Lend the backbone, ready to use, and its own context of the same examples."""
        ...


def lent(
    reader: Reader | None, backbone: AnyBackbone, context: Context
) -> AbstractContextManager[tuple[AnyBackbone, Context]]:
    """Lend what reads the texts of a candidate: its own reader, or the problem's backbone where it has none."""
    return nullcontext((backbone, context)) if reader is None else reader.over(context)


@dataclass(frozen=True)
class Candidate(AnswersTogether):
    """A prompt together with the calibration of its logits; or several such that answer together.

    Args:
        prompt: the prompt.
        calibration: of its logits.
        reader: what reads the texts in place of the problem's backbone; None for that backbone.
        others: further prompts, each with its calibration, whose probabilities are averaged with its own (prompt
            ensembling, Lester et al., EMNLP 2021, section 6). A text is read once for all of them where the backbone
            can: a causal model, with the prompts behind the text and neither prefixes nor class heads of their own.
        is_cut: whether the time limit ended before it was calibrated, or its class head fitted to all examples.
    """

    prompt: Prompt
    calibration: Calibration
    reader: Reader | None = None
    others: tuple[CalibratedPrompt, ...] = ()
    is_cut: bool = False

    def then(self, calibration: Calibration) -> Candidate:
        """Return the candidate with one more calibration after each prompt's own."""
        others = tuple(replace(other, calibration=other.calibration.then(calibration)) for other in self.others)
        return replace(self, calibration=self.calibration.then(calibration), others=others)

    def joined_by(self, others: Sequence[Candidate]) -> Candidate:
        """Return the candidate whose prompts answer together with those of others, each with its own calibration."""
        pairs = [pair for one in others for pair in zip(one.prompts, one.calibrations, strict=True)]
        return replace(self, others=(*self.others, *(CalibratedPrompt(prompt, own) for prompt, own in pairs)))

    def logits(self, backbone: AnyBackbone, context: Context) -> Tensor:
        """Return calibrated values `[B, O]`; of several prompts, those of their mean probabilities."""
        with lent(self.reader, backbone, context) as (own, context):
            logits = own.class_logits_many(context, self.prompts)
            return self.joined(logits, objective_of(context.renderer.task.answers))

    def joined(self, logits: Tensor, objective: Objective) -> Tensor:
        """Return calibrated values `[B, O]`, given the logits `[T, B, O]` of its prompts."""
        pairs = zip(self.calibrations, logits, strict=True)
        calibrated = torch.stack([calibration.apply(own) for calibration, own in pairs])
        return calibrated[0] if len(calibrated) == 1 else objective.mixed(calibrated)


def fresh_decisions(
    backbone: AnyBackbone,
    task: Task,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    spaces: Sequence[AnswerSpace],
    report: Callable[[Event], None] = lambda event: None,
) -> list[list[Decision]]:
    """Return the answers `[T, B]` of several prompts to examples that are read once and not kept.

    Args:
        backbone: what reads the texts.
        task: template and answers.
        candidates: `[T]` the prompts.
        examples: `[B]` the texts.
        spaces: `[T]` the answer space by which each prompt decides; they differ in what is fitted to held-out answers.
        report: progress callback.

    Raises:
        BackboneError: the model answers with NaN or infinity.
    """
    if task.answers.is_open:
        return _fresh_words(backbone, task, candidates, examples, report)
    logits = fresh_logits(backbone, task, candidates, examples, report)
    found = task.answers.probabilities(logits.double().cpu().numpy())
    return [answers.decide(own, examples) for own, answers in zip(found, spaces, strict=True)]


@torch.no_grad()
def _fresh_words(
    backbone: AnyBackbone,
    task: Task,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    report: Callable[[Event], None],
) -> list[list[Decision]]:
    """Return the same where any word may be the answer."""
    found: list[list[Decision]] = [[] for _ in candidates]
    for start in range(0, len(examples), WORDS_FRESH):
        context = backbone.context(examples[start : start + WORDS_FRESH], task)
        for candidate, decisions in zip(candidates, found, strict=True):
            with lent(candidate.reader, backbone, context) as (own, texts):
                share = 1 / len(candidate.prompts)
                decisions += word_decisions([PromptTexts(own, prompt, texts, share) for prompt in candidate.prompts])
        report(Answered(step=start + len(context), total=len(examples), padding=context.padding))
    return found


@torch.no_grad()
def fresh_logits(
    backbone: AnyBackbone,
    task: Task,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    report: Callable[[Event], None] = lambda event: None,
) -> Tensor:
    """Return calibrated values `[T, B, O]` of several prompts on examples that are read once and not kept.

    Raises:
        BackboneError: the model answers with NaN or infinity.
    """
    parts = []
    objective = objective_of(task.answers)
    together: dict[int, list[int]] = {}  # those that one reader reads
    for n, candidate in enumerate(candidates):
        together.setdefault(id(candidate.reader), []).append(n)
    for start in range(0, len(examples), FRESH):
        context = backbone.context(examples[start : start + FRESH], task, keep_bytes=0)
        found: dict[int, Tensor] = {}
        for rows in together.values():
            prompts = [prompt for n in rows for prompt in candidates[n].prompts]
            with lent(candidates[rows[0]].reader, backbone, context) as (own, texts):
                logits = own.class_logits_many(texts, prompts).split([len(candidates[n].prompts) for n in rows])
            found |= {n: candidates[n].joined(part, objective) for n, part in zip(rows, logits, strict=True)}
        parts.append(torch.stack([found[n] for n in range(len(candidates))]))
        report(Answered(step=start + len(context), total=len(examples), padding=context.padding))
    return finite(torch.cat(same_width(parts), dim=1), backbone, task.answers)
