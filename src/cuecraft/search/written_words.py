"""Hand-written words: the shortest search for a prompt in words, which tries a few that come with the package."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from cuecraft.method import (
    CalibrationKind,
    Candidate,
    Event,
    Method,
    Outcome,
    Problem,
    Score,
    Selection,
    finite,
    require_language_head,
)
from cuecraft.prompts import HardPrompt
from cuecraft.search.label_free.pool import guess_task_type, shipped_cues, tokenised
from cuecraft.untuned import calibration_of, untuned_prompt

_TOGETHER = 4  # prompts that one pass reads


class WrittenWords(Method):
    """Tries hand-written words in the prompt slot, each calibrated on the training labels; least dev loss wins.

    The template's own words compete. For prompt slots behind the text, in front of the answer.
    """

    name: ClassVar[str] = "written-words"

    cues: int = Field(12, ge=1, description="hand-written words that are tried, at most")

    def fit(self, problem: Problem) -> Outcome:
        """Choose among them.

        Raises:
            MethodError: the backbone has no language head.
        """
        require_language_head(problem, self.name)
        untuned, train = untuned_prompt(problem, CalibrationKind.FITTED)
        selection = Selection(problem)
        verbalizer = problem.task.verbalizer
        cues = tokenised(problem.backbone.tokenizer, shipped_cues(guess_task_type(verbalizer), verbalizer, 0, 0))
        cues.pop(problem.initial_ids, None)
        chosen = list(cues)[: self.cues]
        if train is not None:
            event: Event = {"phase": "words", "step": 0, "total": len(chosen)}
            selection.see(untuned, train, **event, prompt=problem.task.template.prompt_text)
        with problem.in_time():
            for first in range(0, len(chosen), _TOGETHER):
                self._see(problem, selection, chosen[first : first + _TOGETHER], first, len(chosen))
        return selection.outcome(untuned)

    @torch.no_grad()
    def _see(
        self, problem: Problem, selection: Selection, cues: list[tuple[int, ...]], before: int, total: int
    ) -> None:
        """Calibrate and score a few prompts, which share the passes over the texts."""
        backbone, prompts = problem.backbone, [HardPrompt(ids) for ids in cues]
        parts = [part for part in (problem.train, problem.dev) if part is not None]
        answers = [finite(backbone.class_logits_many(part.context, prompts), backbone) for part in parts]
        for number, prompt in enumerate(prompts):
            fitted = calibration_of(problem, prompt, CalibrationKind.FITTED, answers[0][number])
            candidate = Candidate(prompt, fitted)
            scores = [
                Score.of(candidate.joined(found[number][None]), part.labels, part.weights)
                for found, part in zip(answers, parts, strict=True)
            ]
            event: Event = {"phase": "words", "step": before + number + 1, "total": total}
            selection.see(candidate, *scores, **event, prompt=prompt.text(backbone.tokenizer))
