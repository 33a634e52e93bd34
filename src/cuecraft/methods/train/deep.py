"""Deep cue: trained offsets on the hidden states entering every layer, at the prompt's own positions. And the hybrid.

With offsets of zero the prompt is its base exactly, so tuning starts from what the words already do. A step costs the
cue's tokens only, and no architecture has to accept keys and values that it did not make. Related: deep prompts of
P-tuning v2 (Liu et al., ACL 2022, arXiv 2110.07602); interventions of ReFT (Wu et al., 2024, arXiv 2404.03592). The
hybrid takes words found by discrete search and refines them into vectors or offsets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from cuecraft.artifact import DeepCue, HardPrompt
from cuecraft.core.errors import MethodError
from cuecraft.core.events import TrainStep
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.in_context import BehindShots
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem, Selection, score
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search.space import filled_ids, filled_start
from cuecraft.methods.train.soft import EmbeddingTraining
from cuecraft.methods.train.trainable import PromptTensor, TensorTraining, embedding_scale
from cuecraft.methods.train.verbalizer import Verbalized, VerbalizerKind, head_unit, verbalized
from cuecraft.methods.untuned import begin


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
        if prompt.states is not None:
            raise MethodError(f"{self.name} starts from words, vectors or a deep cue, not from a prefix")
        offsets = prompt.offsets
        if offsets is None:
            offsets = torch.zeros(backbone.offsets_shape(len(prompt)), device=backbone.device)
        scale = embedding_scale(backbone.embedding_matrix())
        unit = head_unit(backbone)
        return PromptTensor(offsets, start, scale, self, lambda offsets: DeepCue(prompt, offsets), head_unit=unit)


class DeepCueTuning(BehindShots, OffsetTraining, Method):
    """The deep cue as a method: from the template's own words on."""

    prompt_length: int | None = Field(None, ge=1, description="tuned positions; by default the template's own words")
    calibration: Calibrated = CalibrationKind.FITTED
    verbalizer: Verbalized = VerbalizerKind.WORDS

    @property
    def reads_label_words(self) -> bool:
        """Whether no vectors take the place of label words."""
        return self.verbalizer is VerbalizerKind.WORDS

    def fit(self, problem: Problem) -> Outcome:
        """Train from the template's own words; the best prompt on dev wins, the untuned one included."""
        return self.tuned_behind(problem, self._tuned)

    def _tuned(self, problem: Problem) -> Outcome:
        untuned, selection = begin(problem, self.calibration)
        with problem.in_time():
            if self.verbalizer is VerbalizerKind.WORDS:
                starts = [filled_start(problem, untuned, self.prompt_length, self.calibration)]
            else:
                words = HardPrompt(filled_ids(problem, self.prompt_length))
                starts = verbalized(problem, words, self.verbalizer, self.calibration)
            for start in starts:
                self.refine(problem, start, selection)
        return selection.outcome(untuned)


class Hybrid(Method):
    """Discrete search, whose result warm-starts training: step 0 of training has the hard prompt's logits."""

    name: ClassVar[str] = "hybrid"
    weighs_examples: ClassVar[bool] = True

    search: AutoPrompt = Field(default_factory=AutoPrompt, description="options of the discrete search")
    ending: Literal["tune", "deep"] = Field("tune", description="what refines the words: `tune` or `deep`")
    tune: EmbeddingTraining = Field(default_factory=EmbeddingTraining, description="options of prompt tuning")
    deep: OffsetTraining = Field(default_factory=OffsetTraining, description="options of the deep cue")

    def fit(self, problem: Problem) -> Outcome:
        """Search, then train; the best prompt of both on dev wins, the untuned one included."""
        searched = self.search.fit(problem)
        best = searched.best
        selection = Selection(problem, trace=list(searched.trace), best=best)
        with problem.in_time():
            selection.see(best, score(problem.backbone, best, problem.train), TrainStep("handover", 0))
            ending = self.tune if self.ending == "tune" else self.deep
            ending.refine(problem, best, selection)
        found = selection.outcome(searched.start)
        return replace(found, words=best, dev=found.dev or searched.dev)
