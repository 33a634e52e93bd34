"""Sets of labels: any number of a fixed set of classes for each text, none included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from cuecraft.core.errors import DataError, named
from cuecraft.data.labels import is_missing, label_name, python_value
from cuecraft.data.records import Record, column_value
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace, Decision, Gold, Values, check_number
from cuecraft.task.answers.words import Words, check_words, words_of
from cuecraft.task.example import Example

_FOLDS = 5  # that strata of few texts are joined for


class MultilabelOptions(AnswerOptions):
    """What is asked of sets of labels."""

    kind: Literal["multilabel"] = "multilabel"
    classes: tuple[str, ...] | None = None  # in their order; None for the labels of the examples, sorted


@dataclass(frozen=True)
class Multilabel(AnswerSpace):
    """Classes in a fixed order, any of which may be right; an answer is a list of them, a gold their numbers.

    A class is answered where its probability is its threshold at least. Scores follow scikit-learn; an empty set that
    is answered with an empty set has an F1 of 1 (`zero_division=1`), a class that is neither there nor answered has an
    F1 of 0 in the macro-F1 (`zero_division=0`). The primary score is the F1 of each text's own set: of the usual three
    it alone is a mean over texts, which paired comparisons and early stopping need.

    Args:
        labels: `[L]` class names.
        words: `[L]` tuples of label words, without a leading space.
        classes: `[L]` the classes as the user's data has them; none given for their names.
        thresholds: `[L]` least probabilities of answered classes, between 0 and 1; none given for .5 each.

    Raises:
        DataError: no class, a class named twice, not one threshold for each, or one that is no
            probability.
        LabelWordError: a class without words, an empty word, or one word for two classes.
    """

    kind: ClassVar[str] = "multilabel"
    primary: ClassVar[str] = "example_f1"
    measures: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "exact_match")
    calibrations: ClassVar[tuple[str, ...]] = ("none", "fitted")
    options_kind: ClassVar[type[AnswerOptions]] = MultilabelOptions
    fits_decisions: ClassVar[bool] = True
    adds_up: ClassVar[bool] = False
    knows_dev: ClassVar[bool] = True
    level: ClassVar[Literal["any", "mean"]] = "mean"
    columns: ClassVar[tuple[str, ...]] = ("labels", "label")

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    classes: tuple[bool | int | float | str, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", self.labels)
        if not self.labels:
            raise DataError("no row has a label, so there is nothing to learn; give rows with labels, or name classes")
        if len(set(self.labels)) != len(self.labels):
            raise DataError(f"a class is named twice among {', '.join(self.labels)}")
        for what, own in (("names of classes", self.classes), ("thresholds", self.thresholds)):
            if own and len(own) != len(self.labels):
                raise DataError(f"{len(own)} {what} for {len(self.labels)} classes; give one for each")
        for least in self.thresholds:
            check_number("a threshold", least, 0, 1)
        check_words(self.labels, self.words)

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[tuple[str, ...], tuple[()]]:
        """Return the names of a row's labels, each once: of a list, or of a string with a separator."""
        column = columns.label_in(row, cls.columns)
        value = python_value(column_value(where, row, column))
        if isinstance(value, str):
            value = _parts(where, column, value, columns.separator)
        if is_missing(value):
            raise DataError(f"{where}: column {column!r} has no labels; give a list, [] for none, or remove the row")
        if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
            raise DataError(f"{where}: column {column!r} is a {type(value).__name__}; give a list of labels")
        return names_of_set(where, value), ()

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the classes of records, sorted, or those asked for."""
        classes = asked.classes if isinstance(asked, MultilabelOptions) else None
        names = classes or sorted({name for record in records if record.label is not None for name in record.label})
        return cls(tuple(names), words_of(names, label_words))

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """The label words of each class, by its name."""
        return dict(zip(self.labels, self.words, strict=True))

    @property
    def undecided(self) -> Self:
        """The same classes with thresholds of .5."""
        return replace(self, thresholds=())

    @property
    def least(self) -> Values:
        """The thresholds `[L]`."""
        return np.array(self.thresholds or (0.5,) * self.size)

    def joined(self, others: Sequence[AnswerSpace]) -> Self:
        """Return the space with the mean thresholds of this one and of others."""
        known = [own.least for own in (self, *others) if isinstance(own, Multilabel)]
        if all(own == self for own in others):
            return self
        return replace(self, thresholds=tuple(np.mean(known, axis=0).tolist()))

    def gold(self, record: Record) -> tuple[int, ...]:
        """Return the numbers of a record's labels, ascending.

        Raises:
            DataError: one is no class, or the label is no list.
        """
        if isinstance(record.label, str) or not hasattr(record.label, "__iter__"):
            raise DataError(f"label {record.label!r} is no list of labels; give a list, [] for none")
        return tuple(sorted({self._index(str(name)) for name in record.label}))

    def label(self, gold: Gold) -> tuple[str, ...]:
        """Return the names of the classes of a set."""
        if not isinstance(gold, tuple) or any(number not in range(self.size) for number in gold):
            raise DataError(f"the set {gold!r}; it has a class that is not there")
        return tuple(self.labels[number] for number in gold)

    def indicators(self, golds: Sequence[Gold]) -> Values:
        """Return 1 where a class is right `[B, L]`, else 0."""
        found = np.zeros((len(golds), self.size))
        for row, gold in enumerate(golds):
            assert isinstance(gold, tuple)
            found[row, list(gold)] = 1
        return found

    def probabilities(self, values: Values) -> Values:
        """Return the probability of each class `[..., L]`: values are log-odds."""
        return np.exp(-np.logaddexp(0.0, -values))

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the classes of each text; the confidence is the set's probability if labels were independent."""
        chosen = probabilities >= self.least
        certain = np.where(chosen, probabilities, 1 - probabilities).prod(-1).tolist()
        names = [str(value) for value in self.classes]
        return [
            Decision(
                [value for value, is_in in zip(self.classes, own, strict=True) if is_in],
                confidence,
                dict(zip(names, row, strict=True)),
            )
            for own, confidence, row in zip(chosen.tolist(), certain, probabilities.tolist(), strict=True)
        ]

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return F1 of each text's set, micro- and macro-F1, and the share of sets that are exactly right."""
        numbers = {value: number for number, value in enumerate(self.classes)}
        found = self.indicators([tuple(numbers[value] for value in own.value) for own in decisions])
        truth = self.indicators(golds)
        both, sizes = found * truth, found + truth
        return {
            self.primary: float(_f1(both.sum(1), sizes.sum(1), 1.0).mean()),
            "micro_f1": float(_f1(both.sum(), sizes.sum(), 0.0)),
            "macro_f1": float(_f1(both.sum(0), sizes.sum(0), 0.0).mean()),
            "exact_match": float((found == truth).all(1).mean()),
        }

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return each set's rarest label, L for an empty set; small groups are joined with the next larger one."""
        counts = Counter(number for gold in golds if isinstance(gold, tuple) for number in gold)
        found = [
            min(gold, key=lambda number: (counts[number], number)) if isinstance(gold, tuple) and gold else self.size
            for gold in golds
        ]
        return joined_strata(found)

    def _index(self, name: str) -> int:
        try:
            return self.labels.index(name)
        except ValueError:
            shown = ", ".join(self.labels[:_SHOWN]) + ", ..." * (self.size > _SHOWN)
            raise DataError(
                f"label {name!r} is not one of the task's {self.size} classes ({shown}); fix the label or add the "
                "class to the training data"
            ) from None


_SHOWN = 20  # classes that an error names


def _f1(both: Any, sizes: Any, of_none: float) -> Values:
    """Return F1 of what both sides have and of their sizes together; `of_none` where both have nothing."""
    found: Values = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), of_none)
    return found


def names_of_set(where: str, labels: Any) -> tuple[str, ...]:
    """Return the names of labels, each once, in their order; raises DataError as `label_name`."""
    return tuple(dict.fromkeys(label_name(where, label, "a label in the list is missing") for label in labels))


def smallest_stratum(count: int) -> int:
    """Return the texts of the smallest stratum of so many: enough for each of the usual folds, two of few texts."""
    return max(2, min(_FOLDS, count // 4))


def joined_strata(strata: Sequence[int]) -> list[int]:
    """Return strata that are not too small: the smallest joins the next larger one until none is."""
    sizes, smallest = Counter(strata), smallest_stratum(len(strata))
    joined = {own: own for own in sizes}
    while len(sizes) > 1:
        small, larger = sorted(sizes, key=lambda own: (sizes[own], own))[:2]
        if sizes[small] >= smallest:
            break
        sizes[larger] += sizes.pop(small)
        joined = {own: larger if into == small else into for own, into in joined.items()}
    return [joined[own] for own in strata]


def _parts(where: str, column: str, text: str, separator: str | None) -> list[str]:
    """Return the parts of a string; none of a blank one."""
    if not text.strip():
        return []
    if separator is None:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise DataError(
            f"{where}: column {column!r} is one string ({shown!r}), and no separator is given; give a list of labels, "
            f"or the {named('data.separator')} between them"
        )
    return [part for part in text.split(separator) if part.strip()]
