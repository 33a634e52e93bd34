"""An open set: one of some classes, or none of these, with a least confidence that is fitted to held-out answers.

Related: out-of-scope intents (Larson et al., EMNLP 2019, D19-1131); the confidence as a score of what is out of scope
(Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.data.labels import read_label
from cuecraft.task.answers.base import (
    AnswerColumns,
    AnswerOptions,
    AnswerSpace,
    Decision,
    Gold,
    Values,
    check_number,
    softmax,
)
from cuecraft.task.answers.words import Words, check_words, words_of
from cuecraft.task.example import Example

_KEPT = 0.95


class OpenSetOptions(AnswerOptions):
    """What is asked of labels of which none may be right."""

    kind: Literal["open-set"] = "open-set"
    classes: tuple[str, ...] | None = Field(None, description="in their order; by default those of the examples")
    reject: str | None = Field(None, description="label of rows of no class, and the answer to texts of none")
    keep: float = Field(
        _KEPT, gt=0, le=1, description="share of held-out texts of a class that are answered, where none is of no class"
    )


@dataclass(frozen=True)
class OpenSet(AnswerSpace):
    """Classes with label words; an answer is one class, or none; a gold is a class's number, or C for none.

    Args:
        labels: `[C]` class names.
        words: `[C]` tuples of label words, without a leading space.
        reject: label of rows of no class, and the answer to texts of none; None where no row is of no class.
        keep: share of held-out texts of a class that are answered, where none is of no class.
        least: least probability of the likeliest class with which it is answered.

    Raises:
        DataError: fewer than two classes, a class named twice, or a share that is none.
        LabelWordError: a class without words, an empty word, or one word for two classes.
    """

    kind: ClassVar[str] = "open-set"
    primary: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("in_scope_accuracy", "out_of_scope_recall", "auroc")
    options_kind: ClassVar[type[AnswerOptions]] = OpenSetOptions
    fits_decisions: ClassVar[bool] = True
    has_one_class: ClassVar[bool] = True

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    reject: str | None = None
    keep: float = _KEPT
    least: float = 0.0

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise DataError(f"only one class ({', '.join(self.labels) or 'none'}); give examples of at least two")
        if len(set(self.labels)) != len(self.labels) or self.reject in self.labels:
            raise DataError(f"a class is named twice among {', '.join((*self.labels, self.reject or ''))}")
        check_words(self.labels, self.words)
        if not 0 < self.keep <= 1:
            raise DataError(f"keep is {self.keep:g}; it has to be a share above 0, up to 1")
        check_number("least", self.least, 0, 1)

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[str, tuple[str, ...]]:
        """Return the name of a row's class; there are no options of its own."""
        return read_label(where, row, columns.label_in(row, cls.columns)), ()

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the classes of records, sorted, or those asked for."""
        options = asked if isinstance(asked, OpenSetOptions) else OpenSetOptions()
        found = sorted({str(record.label) for record in records if record.label is not None} - {options.reject})
        names = options.classes or tuple(found)
        return cls(tuple(names), words_of(names, label_words), options.reject, options.keep)

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """The label words of each class, by its name."""
        return dict(zip(self.labels, self.words, strict=True))

    @property
    def undecided(self) -> Self:
        """The same classes, of which the likeliest is always answered."""
        return replace(self, least=0.0)

    def joined(self, others: Sequence[AnswerSpace]) -> Self:
        """Return the space with the mean least confidence of this one and of others."""
        known = [own.least for own in (self, *others) if isinstance(own, OpenSet)]
        return self if len(set(known)) == 1 else replace(self, least=float(np.mean(known)))

    def gold(self, record: Record) -> int:
        """Return the number of a record's class, C for none.

        Raises:
            DataError: there is no such class.
        """
        name = str(record.label)
        if name == self.reject:
            return self.size
        try:
            return self.labels.index(name)
        except ValueError:
            others = "" if self.reject is None else f", nor {self.reject!r}, which stands for none of them"
            raise DataError(
                f"label {name!r} is not one of the task's {self.size} classes{others}; fix the label or add the class "
                "to the training data"
            ) from None

    def label(self, gold: Gold) -> str:
        """Return the name of a class, or of none of them."""
        if gold == self.size and self.reject is not None:
            return self.reject
        if not isinstance(gold, int) or gold not in range(self.size):
            raise DataError(f"class number {gold}; there is no such class")
        return self.labels[gold]

    def probabilities(self, values: Values) -> Values:
        """Return class probabilities `[..., C]`, as if one class were right."""
        return softmax(values)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the likeliest class of each text, or `reject` where it is less likely than `least`.

        The confidence of a rejection is what the likeliest class lacks to certainty.
        """
        found = []
        for number, row in zip(self.chosen(probabilities).tolist(), probabilities.tolist(), strict=True):
            shares = dict(zip(self.labels, row, strict=True))
            is_in = number < self.size
            value = self.labels[number] if is_in else self.reject
            found.append(Decision(value, row[number] if is_in else 1 - max(row), shares))
        return found

    def chosen(self, probabilities: Values) -> np.ndarray:
        """Return the numbers `[...]` of the classes that are answered, C for none."""
        return np.where(probabilities.max(-1) < self.least, self.size, probabilities.argmax(-1))

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return how many answers are right, over all texts, over those of a class and over those of none.

        `auroc` is the area under the ROC curve (scikit-learn) of the lack of confidence, as a score of texts of no
        class. What is not defined, without texts of a class or of none, is left out.
        """
        from sklearn.metrics import roc_auc_score

        numbers = {name: number for number, name in enumerate((*self.labels, self.reject))}
        right = np.array([numbers[own.value] == gold for own, gold in zip(decisions, golds, strict=True)])
        is_out = np.array([gold == self.size for gold in golds])
        found = {self.primary: float(right.mean())}
        if not is_out.all():
            found["in_scope_accuracy"] = float(right[~is_out].mean())
        if is_out.any():
            found["out_of_scope_recall"] = float(right[is_out].mean())
        if is_out.any() and not is_out.all():
            lack = [1 - max(own.options.values()) for own in decisions]
            found["auroc"] = float(roc_auc_score(is_out, lack))
        return found

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return the classes, C for none."""
        return [gold if isinstance(gold, int) else -1 for gold in golds]

    def groups(self, golds: Sequence[Gold]) -> list[str]:
        """Return the names of the classes."""
        return [self.label(gold) for gold in golds]

    def group_titles(self, golds: Sequence[Gold]) -> dict[str, str]:
        """Return that they are classes."""
        return {name: f"class {name!r}" for name in self.groups(golds)}

    def class_numbers(self, golds: Sequence[Gold]) -> list[int]:
        """Return the classes, -1 where none is known.

        Raises:
            MethodError: a text is of no class.
        """
        if self.size in golds:
            raise MethodError(
                f"this needs texts of which each has a class, and some are {self.reject!r}; use another method, or "
                "leave them for the dev set"
            )
        return [gold if isinstance(gold, int) else -1 for gold in golds]

    def written(self, example: Example, gold: Gold) -> str:
        """Return the first label word of a class, or the name of none of them."""
        name = self.label(gold)
        return self.options[name][0] if name in self.options else name
