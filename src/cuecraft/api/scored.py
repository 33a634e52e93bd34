"""What a fitted classifier scores: the tuned prompt next to the untuned one, over one read of the texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError

from cuecraft.artifact import Calibration
from cuecraft.core.deadline import Deadline, WhileTimeLasts
from cuecraft.core.events import Event
from cuecraft.data import Record
from cuecraft.data.labels import names_to_compare
from cuecraft.data.texts import Labels, Texts, as_labels
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import Outcome
from cuecraft.task import Example, Task

_TOGETHER = 16  # texts that are read between two looks at the clock


class ScoredClassifier:
    """Scores of a classifier that `fit` has made, or that an artifact was loaded into."""

    classes_: np.ndarray
    task_: Task
    outcome_: Outcome
    _deadline: Deadline

    @abstractmethod
    def _probabilities(
        self, texts: Texts, candidates: Sequence[Candidate], report: Callable[[Event], None]
    ) -> np.ndarray:
        """Return class probabilities `[T, N, C]` of several prompts."""

    def scores(
        self, texts: Texts, labels: Labels, report: Callable[[Event], None] = lambda event: None
    ) -> dict[str, dict[str, float]]:
        """Return accuracy and macro-F1 of the tuned prompt next to the untuned one, over one read of the texts.

        Returns:
            ``accuracy`` and ``macro_f1`` of each of: ``tuned``; ``untuned``, the template as written (with a class
            head: the head fitted without tuning the prompt); ``calibrated``, the same with the method's calibration.
        """
        return self._scored(self._probabilities(texts, self._compared(), report), labels)

    def scores_in_time(
        self, texts: Texts, labels: Sequence[Any], report: Callable[[Event], None] = lambda event: None
    ) -> tuple[dict[str, dict[str, float]], int]:
        """Return the `scores` on as many texts, in their order, as the time limit of `fit` leaves time for.

        Returns:
            The scores, empty where there was time for none; and how many texts were answered.
        """
        given = self.task_.records(texts)
        if self._deadline.limit is None:
            return self.scores(texts, labels, report), len(given)
        compared, found = self._compared(), []
        for first in range(0, len(given), _TOGETHER):
            part = [dict(record.fields) for record in given[first : first + _TOGETHER]]

            def listen(event: Event, first: int = first) -> None:
                report(replace(event, step=first + (event.step or 0), total=len(given)))

            with WhileTimeLasts(self._deadline.is_over):
                found.append(self._probabilities(part, compared, listen))
                continue
            break
        if not found:
            return {}, 0
        joined = np.concatenate(found, axis=1)
        return self._scored(joined, labels[: joined.shape[1]]), joined.shape[1]

    def _compared(self) -> list[Candidate]:
        """Return the tuned prompt, the untuned one, and that one calibrated."""
        if not hasattr(self, "outcome_"):
            raise NotFittedError("the untuned prompt is not kept in an artifact; call fit, or score for the tuned one")
        best, start = self.outcome_.best, self.outcome_.start
        return [best, replace(start, calibration=Calibration.none(len(self.classes_)), others=()), start]

    def _scored(self, found: np.ndarray, labels: Labels) -> dict[str, dict[str, float]]:
        """Return the scores of probabilities `[3, N, C]` of the prompts that are compared."""
        answers, names = self.task_.answers, names_to_compare(self.classes_.tolist(), as_labels(labels))
        golds = [answers.gold(Record({}, name)) for name in names]
        return {
            name: answers.measure(answers.decide(own, [Example({})] * len(golds)), golds)
            for name, own in zip(("tuned", "untuned", "calibrated"), found, strict=True)
        }

    def accuracies(
        self, texts: Texts, labels: Labels, report: Callable[[Event], None] = lambda event: None
    ) -> dict[str, float]:
        """Return the accuracies of `scores` alone."""
        return {name: found["accuracy"] for name, found in self.scores(texts, labels, report).items()}
