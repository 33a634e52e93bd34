"""What counts as an answer: the contract of an answer space, which is one file of this package.

An answer space knows options and right answers, and no tensors. It is a frozen
dataclass, whose fields are its entry in a manifest. NumPy, and no torch here.

Shapes: B examples, O options. Where examples bring options of their own, O is the most that one has, and the values
behind an example's own options are minus infinity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from cuecraft.core.errors import DataError, MethodError
from cuecraft.core.options import Options
from cuecraft.data.records import Record, RowAnswers
from cuecraft.task.alignment import WordReading
from cuecraft.task.answers.words import Words
from cuecraft.task.example import Example

#: An example's right answer, as its space has it.
Gold = Hashable
Values = NDArray[np.float64]
_SHOWN = 40  # characters of an answer in an error


@dataclass(frozen=True)
class Decision:
    """What is answered to one text.

    Args:
        value: the answer, as the user's data has it.
        confidence: its probability, 0 to 1.
        options: probability of each option, by name.
        interval: least and greatest number that a number may be; None for other answers.
    """

    value: Any
    confidence: float
    options: Mapping[str, float]
    interval: tuple[float, float] | None = None

    def document(self, most: int | None = None) -> dict[str, Any]:
        """Return it JSON-ready, without what its kind does not give.

        `most` leaves so many options at most, the likeliest first.
        """
        found = {name: value for name, value in vars(self).items() if value is not None or name == "value"}
        pairs = list(self.options.items())
        return found | {"options": dict(pairs if most is None else sorted(pairs, key=lambda pair: -pair[1])[:most])}


def softmax(values: Values) -> Values:
    """Return the probabilities `[..., O]` of options that exclude each other."""
    shares = np.exp(values - values.max(-1, keepdims=True))
    found: Values = shares / shares.sum(-1, keepdims=True)
    return found


def check_number(name: str, value: float, least: float = -math.inf, greatest: float = math.inf) -> None:
    """Raise DataError where a field of an answer space is no number in its range, as in a damaged manifest.

    Args:
        name: of the field.
        value: its value.
        least: that it may have.
        greatest: that it may have.
    """
    if not math.isfinite(value) or not least <= value <= greatest:
        low, high = (
            f" {word} {end:g}" if math.isfinite(end) else "" for word, end in (("from", least), ("to", greatest))
        )
        raise DataError(f"{name} is {value:g}; it has to be a number{low}{high}")


class AnswerOptions(Options):
    """What a user asks of a kind of answers; each kind has fields of its own, all with defaults."""

    kind: str


@dataclass(frozen=True)
class AnswerColumns:
    """Where a row has its label and options.

    Args:
        label: column of the label; None for the kind's usual names (`AnswerSpace.columns`).
        options: column of the options that a row brings.
        separator: between the parts of a label or of options that a file has as one string; None for lists alone.
    """

    label: str | None = None
    options: str = "choices"
    separator: str | None = None

    def names(self, usual: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that may have the label; the first that is there has it."""
        return tuple(usual) if self.label is None else (self.label,)

    def label_in(self, row: Mapping[str, Any], usual: Sequence[str]) -> str:
        """Return the column of a row's label; where there is none, the first name that it could have."""
        names = self.names(usual)
        return next((name for name in names if name in row), names[0])


class AnswerSpace(ABC):
    """What counts as an answer."""

    #: Its name in the registry and in manifests.
    kind: ClassVar[str]
    #: The name of its primary score, which is higher for better answers.
    primary: ClassVar[str]
    #: The names of the other scores that `measure` gives.
    measures: ClassVar[tuple[str, ...]] = ()
    #: Kinds of calibration that make sense (`cuecraft.methods.problem.CalibrationKind`).
    calibrations: ClassVar[tuple[str, ...]] = ("none", "contextual", "batch", "fitted")
    #: What a user may ask of this kind.
    options_kind: ClassVar[type[AnswerOptions]]
    #: Usual names of the column that has the label.
    columns: ClassVar[tuple[str, ...]] = ("label",)
    #: Whether rows bring options of their own, in a column that is no text.
    brings_options: ClassVar[bool] = False
    #: Where a text is read: at its answer slot, or at each of its words, by a class head. See `tokens`.
    at: ClassVar[Literal["answer", "words"]] = "answer"
    #: Whether answers of dev examples make the space too: a class, or an end of a range, may be there alone.
    knows_dev: ClassVar[bool] = False
    #: What scores of label words are relative to: any constant of a text, which no answer depends on, or their mean.
    level: ClassVar[Literal["any", "mean"]] = "any"
    #: Whether decisions have numbers that are fitted to held-out answers (`cuecraft.methods.objectives`, `decided`).
    fits_decisions: ClassVar[bool] = False
    #: Whether a right answer is the number of one option, which all texts share; of others there may be none.
    has_one_class: ClassVar[bool] = False
    #: Whether the probabilities of a text's options add up to one; otherwise each option has one of its own.
    adds_up: ClassVar[bool] = True
    #: Whether the tokens that a giveaway is made of are kept out of prompts too.
    hides_pieces: ClassVar[bool] = False
    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    @abstractmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[Any, tuple[str, ...]]:
        """Return label and options of one row of a file, as a `Record` has them.

        Args:
            where: names file and row, for errors.
            row: values by column, as JSON or CSV has them.
            columns: where label and options stand.

        Raises:
            DataError: a column is missing, or a value is none of this kind.
        """

    @classmethod
    def read_options(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[str, ...]:
        """Return the options of one row, which may have no label; those of a kind whose rows bring none are empty.

        Raises:
            DataError: they are missing, or cannot be chosen among.
        """
        return ()

    @classmethod
    @abstractmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the space that training examples and options lead to: its classes, range or candidates.

        Args:
            records: training examples, each with a label.
            asked: of `options_kind`.
            label_words: by name, or what gives them for names; None for the names themselves.

        Raises:
            DataError: there are too few kinds of answers, or the options do not fit the examples.
            LabelWordError: the words do not fit the answers.
        """

    @classmethod
    def text(cls, value: Any) -> Any:
        """Return the value of a text column as a text, where rows may have texts in another form."""
        return value

    @classmethod
    def in_rows(cls, columns: AnswerColumns | None = None) -> RowAnswers:
        """Return how readers of files and of Python objects get labels and options of rows."""
        asked = columns or AnswerColumns()
        return RowAnswers(
            asked.names(cls.columns),
            (asked.options,) if cls.brings_options else (),
            partial(cls.read, columns=asked),
            partial(cls.read_options, columns=asked),
            cls.text,
        )

    def seeing(self, records: Sequence[Record]) -> Self:
        """Return the space that knows the examples of a run, those to choose by included; by default itself."""
        return self

    @property
    @abstractmethod
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """Label words of each option that all examples share, by name; empty where each example brings its own."""

    def options_of(self, example: Example) -> Mapping[str, tuple[str, ...]]:
        """Label words of the options of one text, by name; of those that all share, unless it brings its own.

        Raises:
            DataError: the text brings none that can be chosen among.
        """
        return self.options

    @property
    def norm(self) -> Literal["row", "token"]:
        """How options of several tokens are scored: by the log of their probability, or its mean over the tokens."""
        return "row"

    def reference(self, example: Example) -> Example | None:
        """Return a text without content that brings the same options, whose scores are taken off; None for none."""
        return None

    @property
    def variants(self) -> Sequence[AnswerSpace]:
        """The spaces of which one is chosen on examples where this one leaves something open; none by default."""
        return ()

    @abstractmethod
    def gold(self, record: Record) -> Gold:
        """Return the right answer of a record that has one; of options that it brings its own, the number.

        Raises:
            DataError: it is no answer of this space.
        """

    def golds(self, records: Sequence[Record]) -> list[Gold]:
        """Return the right answers `[N]` of records that have one each.

        Raises:
            DataError: one is no answer of this space; names its file and row.
        """
        found = []
        for number, record in enumerate(records, start=1):
            try:
                found.append(self.gold(record))
            except DataError as error:
                raise DataError(f"{record.place(number)}: {error}") from None
        return found

    @abstractmethod
    def label(self, gold: Gold) -> Any:
        """Return the label, JSON-ready, of a record whose right answer is `gold`.

        Raises:
            DataError: it is no answer of this space.
        """

    @abstractmethod
    def probabilities(self, values: Values) -> Values:
        """Return the probabilities `[..., O]` of calibrated values `[..., O]`; several prompts' are averaged."""

    @abstractmethod
    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the answers `[B]` that probabilities `[B, O]` lead to."""

    @abstractmethod
    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return scores of answers by name, the primary one first."""

    @abstractmethod
    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return groups `[B]` that folds, shots and rounds of a search hold in equal shares.

        A group of one text cannot be both learnt from and checked, so no folds are made then: where groups are no
        classes, a small one is better joined with another.
        """

    def groups(self, golds: Sequence[Gold]) -> list[str]:
        """Return the names `[B]` of the strata, by which shots and hold-outs are drawn."""
        return [str(number) for number in self.strata(golds)]

    def group_titles(self, golds: Sequence[Gold]) -> dict[str, str]:
        """Return what errors call each group of `groups`: by the first answers in it."""
        names = self.groups(golds)
        if len(set(names)) == 1:
            return dict.fromkeys(names, "the data")
        found: dict[str, list[str]] = {}
        for name, gold in zip(names, golds, strict=True):
            shown, own = " ".join(repr(self.label(gold)).split())[:_SHOWN], found.setdefault(name, [])
            if shown not in own and len(own) < 2:
                own.append(shown)
        return {name: f"the group of answers such as {' and '.join(own)}" for name, own in found.items()}

    @property
    def classes(self) -> tuple[Any, ...]:
        """The options that all examples share as the user's data has them; by default their names."""
        return tuple(self.options)

    @property
    def tuning_score(self) -> str:
        """Name of the score by which prompts are compared in tuning: the primary one, where values give it."""
        return self.primary

    @property
    def undecided(self) -> Self:
        """The same answers without what decisions take from held-out ones."""
        return self

    def joined(self, others: Sequence[AnswerSpace]) -> Self:
        """Return the answers of prompts that answer together, given the others' spaces: the mean of what is fitted."""
        return self

    @property
    def size(self) -> int:
        """The number of options that all examples share, O; 0 where each brings its own."""
        return len(self.options)

    @property
    def asks_options(self) -> bool:
        """Whether a text has to bring the options that are chosen among."""
        return self.brings_options and not self.size and not self.is_open

    @property
    def head_rows(self) -> int:
        """Rows of a class head: the options that all examples share."""
        return self.size

    @property
    def fewest(self) -> int:
        """Examples that are read at least, however short the time: two of each option."""
        return 2 * max(1, self.size)

    @property
    def giveaways(self) -> tuple[str, ...]:
        """Names and words that would give answers away, which no prompt may hold."""
        return (*self.options, *(word for words in self.options.values() for word in words))

    @property
    def is_open(self) -> bool:
        """Whether any word may be the answer, and not one of some options: the whole vocabulary is read then.

        Values `[..., B, 3]` are then what right answers have over the vocabulary (`backbone.words.right_answers`).
        """
        return False

    def class_numbers(self, golds: Sequence[Gold]) -> list[int]:
        """Return the number of the option `[B]` that is right, -1 where none is known.

        Raises:
            MethodError: not exactly one of the options that all examples share is right.
        """
        raise MethodError(f"this needs texts of which each has one label; answers of kind {self.kind} have none")

    @property
    def reading(self) -> WordReading:
        """What is read of a word; only where `at` is "words"."""
        return "word"

    def field_of(self, names: Sequence[str]) -> str:
        """Return the field at whose words texts are read, of several by name; only where `at` is "words".

        Raises:
            DataError: it is not among them.
        """
        raise MethodError(f"answers of kind {self.kind} are not read at words")

    def written(self, example: Example, gold: Gold) -> str:
        """Return an answer as an example in front of a text writes it.

        Raises:
            MethodError: answers of this kind cannot stand there.
        """
        raise MethodError(f"answers of kind {self.kind} cannot stand in examples in front of a text; give shots=0")
