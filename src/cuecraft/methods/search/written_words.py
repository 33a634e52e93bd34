"""Hand-written words: the shortest search for a prompt in words, which tries a few that come with the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import HardPrompt
from cuecraft.artifact.predictor import finite
from cuecraft.core.events import SearchStep
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import (
    CalibrationKind,
    Labelled,
    Method,
    Outcome,
    Problem,
    Selection,
    require_language_head,
)
from cuecraft.methods.search.label_free.pool import guess_task_type, shipped_cues, tokenised
from cuecraft.methods.untuned import calibration_of, untuned_prompt

_AT_ONCE = 4  # prompts that one pass reads
_PHASE = "words"


@dataclass(frozen=True)
class _Tried:
    """A prompt in words, its logits `[B, C]` on the training and the dev examples, and what it is rated by."""

    candidate: Candidate
    logits: tuple[Tensor, ...]
    text: str
    loss: float


class WrittenWords(Method):
    """Tries hand-written words in the prompt slot, each calibrated on the training labels.

    The template's own words compete. Those of least dev loss answer together (prompt ensembling, Lester et al., EMNLP
    2021, section 6), since which of them is the best on few examples is mostly luck; where the template's own words
    alone have no more dev loss, these stay. For prompt slots behind the text.
    """

    name: ClassVar[str] = "written-words"

    cues: int = Field(12, ge=1, description="hand-written words that are tried, at most")
    together: int = Field(3, ge=1, description="prompts that answer together")

    def fit(self, problem: Problem) -> Outcome:
        """Choose among them.

        Raises:
            MethodError: the backbone has no language head.
        """
        require_language_head(problem, self.name)
        untuned, _ = untuned_prompt(problem, CalibrationKind.FITTED)
        verbalizer = problem.task.verbalizer
        cues = tokenised(problem.backbone.tokenizer, shipped_cues(guess_task_type(verbalizer), verbalizer, 0, 0))
        cues.pop(problem.initial_ids, None)
        chosen = [problem.initial_ids, *list(cues)[: self.cues]]
        selection, tried = Selection(problem), list[_Tried]()
        with problem.in_time():
            for first in range(0, len(chosen), _AT_ONCE):
                tried += self._tried(problem, selection, untuned, chosen[first : first + _AT_ONCE], first, len(chosen))
            best = sorted(tried, key=lambda one: one.loss)[: self.together]
            return self._joined(problem, selection, untuned, best, tried[0].loss)
        return selection.outcome(untuned)

    def _joined(
        self, problem: Problem, selection: Selection, untuned: Candidate, best: list[_Tried], own: float
    ) -> Outcome:
        """Return the best prompts together, or the untuned one where its loss `own` is no greater."""
        joined = best[0].candidate.joined_by([one.candidate for one in best[1:]])
        logits = [torch.stack(parts) for parts in zip(*(one.logits for one in best), strict=True)]
        rated = _scores(problem, joined, logits)
        event = SearchStep(_PHASE, prompts=[one.text for one in best], train_loss=rated[0].loss)
        dev = rated[1] if problem.dev is not None else None
        if dev is not None:
            event = replace(event, dev_loss=dev.loss, dev_score=dev.primary, measure=dev.measure)
        selection.note(event)
        if rated[-1].loss < own:
            return Outcome(untuned, joined, selection.trace, dev=dev)
        return Outcome(untuned, untuned, selection.trace)

    @torch.no_grad()
    def _tried(
        self,
        problem: Problem,
        selection: Selection,
        untuned: Candidate,
        cues: list[tuple[int, ...]],
        before: int,
        total: int,
    ) -> list[_Tried]:
        """Calibrate and score a few prompts, which share the passes over the texts."""
        backbone, prompts = problem.backbone, [HardPrompt(ids) for ids in cues]
        answers = [finite(backbone.class_logits_many(part.context, prompts), backbone) for part in _parts(problem)]
        found = []
        for number, prompt in enumerate(prompts):
            candidate = untuned
            if prompt.token_ids != problem.initial_ids:
                fitted = calibration_of(problem, prompt, CalibrationKind.FITTED, answers[0][number])
                candidate = Candidate(prompt, fitted)
            logits, text = tuple(own[number] for own in answers), prompt.text(backbone.tokenizer)
            scores = _scores(problem, candidate, [own[None] for own in logits])
            selection.see(candidate, scores[0], SearchStep(_PHASE, before + number, total, prompt=text), *scores[1:])
            found.append(_Tried(candidate, logits, text, scores[-1].loss))
        return found


def _parts(problem: Problem) -> list[Labelled]:
    return [problem.train] if problem.dev is None else [problem.train, problem.dev]


def _scores(problem: Problem, candidate: Candidate, logits: list[Tensor]) -> list[Score]:
    """Return the scores on train and dev, given the logits `[T, B, C]` of a candidate's prompts on each."""
    pairs = zip(logits, _parts(problem), strict=True)
    return [part.scores(candidate.joined(own, problem.objective)).mean for own, part in pairs]
