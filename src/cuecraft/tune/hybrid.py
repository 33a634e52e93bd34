"""Hybrid: words found by discrete search, then refined into vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from cuecraft.method import Method, Outcome, Problem, Selection, score
from cuecraft.search import AutoPrompt
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining


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
            selection.see(best, score(problem.backbone, best, problem.train), phase="handover", step=0)
            ending = self.tune if self.ending == "tune" else self.deep
            ending.refine(problem, best, selection)
        found = selection.outcome(searched.start)
        return replace(found, words=best, dev=found.dev or searched.dev)
