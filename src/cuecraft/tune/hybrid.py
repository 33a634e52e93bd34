"""Hybrid: words found by discrete search, then refined into vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from cuecraft.method import Method, Outcome, Problem, Selection, score
from cuecraft.search import AutoPrompt
from cuecraft.tune.prompt_tuning import PromptTuning


class Hybrid(Method):
    """Discrete search, whose result warm-starts prompt tuning: step 0 of tuning has the hard prompt's logits."""

    name: ClassVar[str] = "hybrid"

    search: AutoPrompt = Field(default_factory=AutoPrompt, description="options of the discrete search")
    tune: PromptTuning = Field(default_factory=PromptTuning, description="options of prompt tuning")

    def fit(self, problem: Problem) -> Outcome:
        """Search, then tune; the best prompt of both on dev wins, the untuned one included."""
        searched = self.search.fit(problem)
        selection = Selection(problem, trace=list(searched.trace))
        best = searched.best
        selection.see(best, score(problem.backbone, best, problem.train), phase="handover", step=0)
        self.tune.refine(problem, best, selection)
        return replace(selection.outcome(searched.start), words=best)
