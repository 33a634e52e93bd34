"""Labels: one of a fixed set of classes, each with the words that a language model would answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from cuecraft.core.errors import DataError, named
from cuecraft.data import Record
from cuecraft.data.labels import read_label
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace, Decision, Gold, Values, softmax
from cuecraft.task.answers.words import WordChoice, Words, check_words, words_of
from cuecraft.task.example import Example

#: Columns in which rows without `label` may have classes, or answers of another kind.
_ANSWERED = ("answer", "answers", "number", "score", "stars", "rating", "tags", "ner_tags")


class LabelOptions(AnswerOptions):
    """What is asked of labels."""

    kind: Literal["labels"] = "labels"
    classes: tuple[str, ...] | None = None  # in their order; None for the labels of the examples, sorted


@dataclass(frozen=True)
class Verbalizer(AnswerSpace):
    """Classes in a fixed order and, for each, its label words; an answer is one class, a gold its number.

    Several words of one class add up: the class's probability is the sum of its words' probabilities, compared
    with the words of the other classes only.

    Args:
        labels: `[C]` class names.
        words: `[C]` tuples of label words, without a leading space.
        classes: `[C]` the classes as the user's data has them; none given for their names.

    Raises:
        DataError: fewer than two classes, or a class named twice.
        LabelWordError: a class without words, an empty word, or one word for two classes.
    """

    kind: ClassVar[str] = "labels"
    primary: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("macro_f1",)
    options_kind: ClassVar[type[AnswerOptions]] = LabelOptions
    has_one_class: ClassVar[bool] = True

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    classes: tuple[bool | int | float | str, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", self.labels)
        if len(self.classes) != len(self.labels):
            raise DataError(f"{len(self.labels)} names of classes for {len(self.classes)} classes; give one for each")
        if len(self.labels) < 2:
            raise DataError(f"only one class ({', '.join(self.labels) or 'none'}); give examples of at least two")
        if len(set(self.labels)) != len(self.labels):
            raise DataError(f"a class is named twice among {', '.join(self.labels)}")
        check_words(self.labels, self.words)

    @classmethod
    def from_labels(cls, labels: Sequence[str], label_words: Words = None) -> Self:
        """Build a verbalizer for classes, each with its given words or, by default, its own name.

        Raises:
            LabelWordError: `label_words` names a class that is not there, or leaves one out; or a word is no string.
        """
        return cls(tuple(labels), words_of(labels, label_words))

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[str, tuple[str, ...]]:
        """Return the name of a row's class; there are no options of its own."""
        column = columns.label_in(row, cls.columns)
        other = next((name for name in _ANSWERED if name in row), None)
        if columns.label is None and column not in row and other:
            raise DataError(
                f"{where}: no column {column!r}; for classes in {other!r} give {named('data.label_column')}, for other "
                f"answers their kind with {named('task.answers')}"
            )
        return read_label(where, row, column), ()

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the classes of records, sorted, or those asked for; raises as `from_labels`."""
        classes = asked.classes if isinstance(asked, LabelOptions) else None
        labels = classes or sorted({str(record.label) for record in records if record.label is not None})
        return cls.from_labels(labels, label_words)

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """The label words of each class, by its name."""
        return dict(zip(self.labels, self.words, strict=True))

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.labels)

    def with_words(self, label_words: WordChoice) -> Verbalizer:
        """Return the same classes with other label words; raises as `from_labels`."""
        return replace(self, words=self.from_labels(self.labels, label_words).words)

    def index(self, label: str) -> int:
        """Return a class's number.

        Raises:
            DataError: there is no such class.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise DataError(
                f"label {label!r} is not one of the task's classes ({', '.join(self.labels)}); "
                "fix the label or add the class to the training data"
            ) from None

    def gold(self, record: Record) -> int:
        """Return the number of a record's class; raises as `index`."""
        return self.index(str(record.label))

    def label(self, gold: Gold) -> str:
        """Return the name of a class."""
        if not isinstance(gold, int) or gold not in range(self.num_classes):
            raise DataError(f"class number {gold}; there is no such class")
        return self.labels[gold]

    def probabilities(self, values: Values) -> Values:
        """Return class probabilities `[..., C]`."""
        return softmax(values)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the likeliest class of each text."""
        best = probabilities.argmax(-1).tolist()
        rows, names = probabilities.tolist(), [str(value) for value in self.classes]
        return [
            Decision(self.classes[number], row[number], dict(zip(names, row, strict=True)))
            for number, row in zip(best, rows, strict=True)
        ]

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return accuracy, and macro-F1 (scikit-learn): a class that is neither there nor predicted has 0."""
        from sklearn.metrics import f1_score

        numbers = {value: number for number, value in enumerate(self.classes)}
        found, numbered = [numbers[own.value] for own in decisions], list(range(self.num_classes))
        hits = [own == gold for own, gold in zip(found, golds, strict=True)]
        macro = f1_score(list(golds), found, labels=numbered, average="macro", zero_division=0)
        return {self.primary: float(np.mean(hits)), "macro_f1": float(macro)}

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return the classes."""
        return self.class_numbers(golds)

    def groups(self, golds: Sequence[Gold]) -> list[str]:
        """Return the names of the classes."""
        return [self.label(gold) for gold in golds]

    def group_titles(self, golds: Sequence[Gold]) -> dict[str, str]:
        """Return that they are classes."""
        return {name: f"class {name!r}" for name in self.groups(golds)}

    def class_numbers(self, golds: Sequence[Gold]) -> list[int]:
        """Return the classes, -1 where none is known."""
        return [gold if isinstance(gold, int) else -1 for gold in golds]

    def written(self, example: Example, gold: Gold) -> str:
        """Return the first label word of a class."""
        return self.options[self.label(gold)][0]
