"""Labels: one of a fixed set of classes, each with the words that a language model would answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np

from cuecraft.core.errors import DataError, LabelWordError
from cuecraft.data import Record
from cuecraft.data.labels import python_value
from cuecraft.task.answers.base import AnswerSpace, Decision, Gold, Values, softmax
from cuecraft.task.example import Example

WordChoice = Mapping[str, str | Sequence[str]]


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
        owner: dict[str, str] = {}
        for label, words in zip(self.labels, self.words, strict=True):
            if not words or not all(word.strip() for word in words):
                raise LabelWordError(f"class {label!r} has no label word, or an empty one; give it a word")
            for word in words:
                if owner.setdefault(word, label) != label:
                    raise LabelWordError(
                        f"label word {word!r} stands for both {owner[word]!r} and {label!r}; change one"
                    )

    @classmethod
    def from_labels(cls, labels: Sequence[str], label_words: WordChoice | None = None) -> Verbalizer:
        """Build a verbalizer for classes, each with its given words or, by default, its own name.

        Raises:
            LabelWordError: `label_words` names a class that is not there, or leaves one out; or a word is no string.
        """
        if label_words is None:
            return cls(tuple(labels), tuple((default_word(label),) for label in labels))
        unknown = [name for name in label_words if name not in labels]
        missing = [label for label in labels if label not in label_words]
        if unknown:
            are_numbered = list(labels) == [str(number) for number in range(len(labels))]
            remedy = "; where scikit-learn has numbered the classes, give a list of words in the classes' order"
            raise LabelWordError(
                f"label words for {unknown[0]!r}, but the classes are {', '.join(labels)}{remedy * are_numbered}"
            )
        if missing:
            raise LabelWordError(f"no label words for class {missing[0]!r}; give it at least one")
        return cls(tuple(labels), tuple(_as_words(label, label_words[label]) for label in labels))

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

    def class_numbers(self, golds: Sequence[Gold]) -> list[int]:
        """Return the classes, -1 where none is known."""
        return [gold if isinstance(gold, int) else -1 for gold in golds]

    def written(self, example: Example, gold: Gold) -> str:
        """Return the first label word of a class."""
        return self.options[self.label(gold)][0]


def default_word(label: str) -> str:
    """Return a class's name as a person would write it in a sentence: ``"Sci_Fi"`` gives ``"sci fi"``."""
    return " ".join(label.replace("_", " ").split()).lower()


def distinct_words(labels: Sequence[str]) -> WordChoice | None:
    """Return a letter or more for each class where default words do not separate the classes; None where they do.

    What answers by a class head reads no words, but a task has some for each class, and a tokenizer that knows no
    capitals has to separate them.
    """
    words = [default_word(label) for label in labels]
    if all(words) and len(set(words)) == len(words):
        return None
    width = next(n for n in count(1) if len(ascii_lowercase) ** n >= len(labels))
    return {label: "".join(own) for label, own in zip(labels, product(ascii_lowercase, repeat=width), strict=False)}


def _as_words(label: str, value: Any) -> tuple[str, ...]:
    """Return the words of a class, given as one or as several in a list or an array, without outer spaces."""
    value = python_value(value)
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
    given = list(value) if several or getattr(value, "ndim", 0) == 1 else [value]
    words = [python_value(word) for word in given]
    for word in words:
        if not isinstance(word, str):
            shown = " ".join(repr(word).split())[:60]
            raise LabelWordError(
                f"a label word of class {label!r} is a {type(word).__name__} ({shown}); give a string, or a list of "
                "strings"
            )
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise LabelWordError(
                f"label word {word!r} of class {label!r} holds half a character (a lone surrogate); fix it"
            )
    return tuple(dict.fromkeys(str.__str__(word).strip() for word in words))
