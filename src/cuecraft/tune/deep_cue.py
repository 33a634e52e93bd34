"""Deep cue: trained offsets on the hidden states entering every layer, at the prompt's own positions.

With offsets of zero the prompt is its base exactly, so tuning starts from what the words already do. A step costs the
cue's tokens only, and no architecture has to accept keys and values that it did not make. Related: deep prompts of
P-tuning v2 (Liu et al., ACL 2022, arXiv 2110.07602); interventions of ReFT (Wu et al., 2024, arXiv 2404.03592).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from cuecraft.errors import MethodError
from cuecraft.method import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.predictor import Candidate
from cuecraft.prompts import DeepCue, PrefixPrompt
from cuecraft.search.start import filled_start
from cuecraft.tune.in_context import BehindShots
from cuecraft.tune.trainable import PromptTensor, TensorTraining, embedding_scale
from cuecraft.untuned import begin


class OffsetTraining(TensorTraining):
    """Training of offsets on every layer, from a given prompt on."""

    name: ClassVar[str] = "deep-cue"
    weighs_examples: ClassVar[bool] = True

    learning_rate: float = Field(0.1, gt=0, description="AdamW step, in units of the embeddings' RMS")

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return the offsets of a given prompt, to be trained; step 0 has exactly its logits.

        Raises:
            MethodError: the prompt has a prefix.
        """
        backbone, prompt = problem.backbone, start.prompt
        if isinstance(prompt, PrefixPrompt):
            raise MethodError(f"{self.name} starts from words, vectors or a deep cue, not from a prefix")
        base = prompt.base if isinstance(prompt, DeepCue) else prompt
        offsets = prompt.offsets
        if offsets is None:
            offsets = torch.zeros(backbone.offsets_shape(len(prompt)), device=backbone.device)
        scale = embedding_scale(backbone.embedding_matrix())
        return PromptTensor(offsets, start, scale, self, lambda offsets: DeepCue(base, offsets))


class DeepCueTuning(BehindShots, OffsetTraining, Method):
    """The deep cue as a method: from the template's own words on."""

    prompt_length: int | None = Field(None, ge=1, description="tuned positions; by default the template's own words")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train from the template's own words; the best prompt on dev wins, the untuned one included."""
        return self.tuned_behind(problem, self._tuned)

    def _tuned(self, problem: Problem) -> Outcome:
        untuned, selection = begin(problem, self.calibration)
        with problem.in_time():
            start = filled_start(problem, untuned, self.prompt_length, self.calibration)
            self.refine(problem, start, selection)
        return selection.outcome(untuned)
