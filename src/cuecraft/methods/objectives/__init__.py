"""What methods minimise on each kind of answers: losses, scores, calibrations and class heads. One module for each."""

from __future__ import annotations

from cuecraft.core.lazy import Registry
from cuecraft.methods.objectives.base import Golds, Objective, Score, Scores
from cuecraft.task import AnswerSpace

__all__ = ["OBJECTIVES", "Golds", "Objective", "Score", "Scores", "objective_of"]

#: Objectives by the kind of answers (`cuecraft.task.answers.ANSWERS`).
OBJECTIVES: Registry[Objective] = Registry(
    {
        "labels": "cuecraft.methods.objectives.labels:LabelObjective",
        "open-set": "cuecraft.methods.objectives.open_set:OpenSetObjective",
        "choices": "cuecraft.methods.objectives.choices:ChoiceObjective",
        "tokens": "cuecraft.methods.objectives.tokens:TokenObjective",
        "multilabel": "cuecraft.methods.objectives.multilabel:MultilabelObjective",
        "ordinal": "cuecraft.methods.objectives.ordinal:OrdinalObjective",
        "cloze": "cuecraft.methods.objectives.cloze:ClozeObjective",
    }
)


def objective_of(answers: AnswerSpace) -> Objective:
    """Return the objective of an answer space."""
    return OBJECTIVES[answers.kind](answers)
