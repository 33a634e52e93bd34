"""What a fitted classifier answers, and how good that is: the tuned prompt, and the untuned one over the same read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError

from cuecraft.artifact import Artifact
from cuecraft.artifact.predictor import Predictor, as_array
from cuecraft.backbone import AnyBackbone
from cuecraft.core.deadline import Deadline, WhileTimeLasts
from cuecraft.core.errors import DataError, MethodError
from cuecraft.core.events import Event
from cuecraft.data import Record
from cuecraft.data.labels import label_name, names_to_compare
from cuecraft.data.texts import Labels, Texts, as_answers, as_labels, as_records, example_weights
from cuecraft.methods.candidate import Candidate, fresh_decisions
from cuecraft.methods.objectives import objective_of
from cuecraft.methods.problem import Outcome
from cuecraft.task import AnswerSpace, Decision, Example, Task

_TOGETHER = 16  # texts that are read between two looks at the clock


class ScoredClassifier:
    """Answers and scores of a classifier that `fit` has made, or that an artifact was loaded into."""

    predictor_: Predictor
    backbone_: AnyBackbone
    classes_: np.ndarray
    task_: Task
    outcome_: Outcome
    _deadline: Deadline
    _start_answers: AnswerSpace  # as the calibrated, untuned prompt decides

    @abstractmethod
    def _fitted(self) -> Artifact:
        """Return what answers, or raise NotFittedError."""

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> np.ndarray:
        """Return class probabilities `[N, C]`, columns as in `classes_`; `report` is the progress callback.

        Raises:
            MethodError: texts do not share their options; `decide` has the probability of each.
        """
        if not self._fitted().task.answers.size:
            raise MethodError(
                f"texts share no classes in answers of kind {self.task_.answers.kind}; decide(texts) has probabilities"
            )
        return self.predictor_.predict_proba(texts, report)

    def decide(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> list[Decision]:
        """Return what is answered to each text, with confidence and probabilities; `report` as above."""
        self._fitted()
        return self.predictor_.decide(self.predictor_.examples(texts), report)

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether `predict_proba` cuts it at its end to fit; it is tokenised and not read.

        How many tokens are left for a text follows from the model's positions, `max_tokens`, the template, and what is
        kept for the prompt. Every answer is to what is left of the text.
        """
        self._fitted()
        return self.predictor_.truncated(texts)

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the answer to each text `[N]`: the likeliest class, a list, a number, or what else its kind has.

        Where `fit` had an indicator matrix, one is returned: `[N, L]`, columns as in `classes_`.
        """
        values = [own.value for own in self.decide(texts)]
        if getattr(self, "_answers_matrix", False):
            return np.array([[int(name in own) for name in self.classes_.tolist()] for own in values])
        if self.task_.has_labels:
            return np.array(values, dtype=self.classes_.dtype)
        return as_array(values)

    def score(self, texts: Texts, labels: Labels, sample_weight: Any = None) -> float:
        """Return the primary score: of labels the share of texts whose likeliest class is their label's.

        Args:
            texts: `[N]`.
            labels: `[N]` as `fit` reads them; a class that `fit` has not seen counts as a mistake.
            sample_weight: `[N]` weight of each text; None for equal ones.
        """
        if not self._fitted().task.has_labels:
            return self._mean_score(self.task_.examples(self._labelled(texts, labels)), sample_weight)
        names = names_to_compare(self.classes_.tolist(), as_labels(labels))
        found = self.predict_proba(texts).argmax(1)
        if len(names) != len(found):
            raise DataError(f"{len(found)} texts but {len(names)} labels; give one label for each text")
        own = [label_name("a class", value) for value in self.classes_.tolist()]
        hits = [own[row] == name for row, name in zip(found, names, strict=True)]
        return float(np.average(hits, weights=example_weights(sample_weight, len(hits))))

    def _mean_score(self, examples: Sequence[Example], sample_weight: Any) -> float:
        answers, decisions = self.predictor_.answers, self.predictor_.decide(examples)
        pairs = zip(decisions, examples, strict=True)
        scores = [answers.measure([own], [example.gold])[answers.primary] for own, example in pairs]
        return float(np.average(scores, weights=example_weights(sample_weight, len(scores))))

    def _labelled(self, texts: Texts, labels: Labels) -> list[Record]:
        task = self._fitted().task
        fields = task.template.field_names
        if task.has_labels:
            return as_records(texts, names_to_compare(self.classes_.tolist(), as_labels(labels)), fields)
        return as_records(texts, as_answers(labels, task.answers.kind)[0], fields, task.answers.in_rows())

    def scores(
        self, texts: Texts, labels: Labels, report: Callable[[Event], None] = lambda event: None
    ) -> dict[str, dict[str, float]]:
        """Return the scores of the tuned prompt next to the untuned one, over one read of the texts.

        Returns:
            Scores by name, the primary one first (of labels ``accuracy`` and ``macro_f1``), of each of: ``tuned``;
            ``untuned``, the template as written (with a class head: the head fitted without tuning the prompt);
            ``calibrated``, the same with the method's calibration.
        """
        return self.scores_of(self._labelled(texts, labels), report)

    def scores_of(
        self, records: Sequence[Record], report: Callable[[Event], None] = lambda event: None
    ) -> dict[str, dict[str, float]]:
        """Return the `scores` on records."""
        examples = self.task_.examples(records)
        found = fresh_decisions(self.backbone_, self.task_, self._compared(), examples, self._spaces, report)
        return self._scored(found, examples)

    def measured(self, records: Sequence[Record]) -> dict[str, float]:
        """Return the scores of the tuned prompt alone on records, the primary one first."""
        examples = self._fitted().task.examples(records)
        decisions = self.predictor_.decide(examples)
        return self.predictor_.answers.measure(decisions, [example.gold for example in examples])

    def scores_in_time(
        self, records: Sequence[Record], report: Callable[[Event], None] = lambda event: None
    ) -> tuple[dict[str, dict[str, float]], int]:
        """Return the `scores` on as many records, in their order, as the time limit of `fit` leaves time for.

        Returns:
            The scores, empty where there was time for none; and how many texts were answered.
        """
        if self._deadline.limit is None:
            return self.scores_of(records, report), len(records)
        examples = self.task_.examples(records)
        compared, count = self._compared(), 0
        found: list[list[Decision]] = [[] for _ in compared]
        for first in range(0, len(examples), _TOGETHER):
            part = examples[first : first + _TOGETHER]

            def listen(event: Event, first: int = first) -> None:
                report(replace(event, step=first + (event.step or 0), total=len(examples)))

            with WhileTimeLasts(self._deadline.is_over):
                parts = fresh_decisions(self.backbone_, self.task_, compared, part, self._spaces, listen)
                found = [own + more for own, more in zip(found, parts, strict=True)]
                count += len(part)
                continue
            break
        return (self._scored(found, examples[:count]) if count else {}), count

    def _compared(self) -> list[Candidate]:
        """Return the tuned prompt, the untuned one, and that one calibrated."""
        if not hasattr(self, "outcome_"):
            raise NotFittedError("the untuned prompt is not kept in an artifact; call fit, or score for the tuned one")
        best, start = self.outcome_.best, self.outcome_.start
        return [best, replace(start, calibration=objective_of(self.task_.answers).plain(), others=()), start]

    @property
    def _spaces(self) -> Sequence[AnswerSpace]:
        """The answer spaces by which each of `_compared` decides: by what was fitted to its own held-out answers."""
        answers = self.task_.answers
        if not answers.fits_decisions:
            return (answers,) * 3
        return (self.predictor_.answers, answers.undecided, self._start_answers)

    def _scored(self, found: Sequence[Sequence[Decision]], examples: Sequence[Example]) -> dict[str, dict[str, float]]:
        """Return the scores of the answers `[3, N]` of the prompts that are compared."""
        answers, golds = self.task_.answers, [example.gold for example in examples]
        return {
            name: answers.measure(own, golds)
            for name, own in zip(("tuned", "untuned", "calibrated"), found, strict=True)
        }

    def accuracies(
        self, texts: Texts, labels: Labels, report: Callable[[Event], None] = lambda event: None
    ) -> dict[str, float]:
        """Return the primary score alone of `scores`: of labels the accuracy."""
        primary = self.task_.answers.primary
        return {name: found[primary] for name, found in self.scores(texts, labels, report).items()}
