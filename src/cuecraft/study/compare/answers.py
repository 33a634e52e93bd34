"""What a cell has of a trial's answers; and the truth of a comparison of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuecraft.methods.problem import Labelled
from cuecraft.study.compare.figures import figures_of
from cuecraft.study.compare.statistics import Ints
from cuecraft.study.compare.trial import Trial
from cuecraft.task import AnswerSpace, Verbalizer
from cuecraft.task.answers import Gold


def answer_entries(trial: Trial, test: Labelled) -> dict[str, Any]:
    """Return the fields of a cell that say what was answered to the test rows, and how good that is."""
    answers, golds = trial.answers, test.golds.values
    probabilities, decisions = answers.probabilities(trial.values.numpy()), trial.decisions
    measures = answers.measure(decisions, golds)
    primary = trial.scores.primary.tolist()
    is_labels = isinstance(answers, Verbalizer)
    return {
        "macro_f1": measures["macro_f1"] if is_labels else None,
        "measures": measures,
        "predictions": trial.predictions.tolist() if is_labels else [own.value for own in decisions],
        "primary": None if is_labels else primary,
        "figures": figures_of(answers, decisions, probabilities, golds, primary),
    }


def class_truth(answers: AnswerSpace, golds: Sequence[Gold]) -> Ints | None:
    """Return the classes of the test rows `[N]`; None where answers are no labels."""
    return np.array(golds) if isinstance(answers, Verbalizer) else None


def shown_truth(answers: AnswerSpace, golds: Sequence[Gold]) -> list[Any]:
    """Return right answers `[N]` JSON-ready: of labels the class numbers, of others as their data has them."""
    if isinstance(answers, Verbalizer):
        return list(golds)
    found: list[Any] = json.loads(json.dumps([answers.label(gold) for gold in golds]))  # tuples become lists
    return found
