"""Numbers in a range: ordered options, each a number with a label word; the answer is the expected number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from cuecraft.core.errors import DataError
from cuecraft.data.labels import is_missing, python_value
from cuecraft.data.records import Record, column_value
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
from cuecraft.task.answers.multilabel import smallest_stratum
from cuecraft.task.answers.words import Words, check_words, words_of
from cuecraft.task.example import Example

_MOST = 12  # different numbers of which each is an option; of more, quantiles are
#: Label words of the least number, the quartiles and the greatest one.
_QUANTILES = {0.0: "lowest", 0.25: "low", 0.5: "medium", 0.75: "high", 1.0: "highest"}


class OrdinalOptions(AnswerOptions):
    """What is asked of numbers."""

    kind: Literal["ordinal"] = "ordinal"
    values: dict[str, float] | None = Field(None, min_length=2)  # numbers by label word; None for those of the examples
    range: tuple[float, float] | None = None  # least and greatest number; None for those of the examples
    coverage: float = Field(0.8, gt=0, lt=1)  # share of numbers that are to lie in their intervals

    @field_validator("values", mode="before")
    @classmethod
    def _of_words(cls, given: Any) -> Any:
        """Read what a command line writes: ``bad:1,good:5``."""
        if not isinstance(given, str):
            return given
        parts = (pair.rpartition(":") for pair in given.split(","))
        return {word or number: number if mark else "" for word, mark, number in parts}

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("give the least number of the range and then a greater one")
        numbers = [] if self.values is None else list(self.values.values())
        if not all(map(math.isfinite, (*numbers, *(self.range or ())))) or len(set(numbers)) < len(numbers):
            raise ValueError("give each label word a number of its own")
        return self


@dataclass(frozen=True)
class Ordinal(AnswerSpace):
    """A number in a range, of ordered options; an answer is the expected number, a gold the number.

    A number between two options is right by the two nearest to it, each the more the nearer it is, so that they expect
    exactly this number. The interval of an answer holds the middle part of the options' probability, as much as
    `coverage`, and is made wider, or narrower, by `margin`.

    Fitted to held-out answers, the margin makes the interval hold the right number of that share of texts, at least,
    averaged over texts that are drawn like those that it was fitted to (conformalised quantile regression: Romano et
    al., NeurIPS 2019, arXiv 1905.03222, theorem 1). Early stopping on the same texts makes it a little less. With a
    margin of 0 it holds it where the probabilities are right.

    Args:
        numbers: `[O]` of the options, ascending.
        words: `[O]` tuples of label words, without a leading space.
        coverage: share of numbers that are to lie in their intervals, 0 to 1.
        margin: by which each interval is wider on both sides.

    Raises:
        DataError: fewer than two numbers, they do not ascend, or coverage or margin are out of range.
        LabelWordError: a number without words, an empty word, or one word for two numbers.
    """

    kind: ClassVar[str] = "ordinal"
    primary: ClassVar[str] = "neg_mean_absolute_error"
    measures: ClassVar[tuple[str, ...]] = (
        "mean_absolute_error",
        "spearman",
        "quadratic_weighted_kappa",
        "interval_coverage",
    )
    options_kind: ClassVar[type[AnswerOptions]] = OrdinalOptions
    fits_decisions: ClassVar[bool] = True
    knows_dev: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("number", "score", "stars", "rating", "label")

    numbers: tuple[float, ...]
    words: tuple[tuple[str, ...], ...]
    coverage: float = 0.8
    margin: float = 0.0

    def __post_init__(self) -> None:
        if len(self.numbers) < 2:
            raise DataError(f"only one number ({self._shown or 'none'}); give examples of at least two")
        if not all(low < high for low, high in zip(self.numbers, self.numbers[1:], strict=False)):
            raise DataError(f"the numbers {self._shown} do not ascend; give each once, the least first")
        if not 0 < self.coverage < 1:
            raise DataError(f"coverage is {self.coverage:g}; it has to be a share between 0 and 1")
        for name, own in (("margin", self.margin), ("a number", self.numbers[0]), ("a number", self.numbers[-1])):
            check_number(name, own)
        if len(self.words) != len(self.numbers):
            raise DataError(f"{len(self.words)} label words for {len(self.numbers)} numbers; give each its own")
        check_words(tuple(self.options), self.words)

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[float, tuple[()]]:
        """Return the number of a row, of a number or a string that is written as one."""
        column = columns.label_in(row, cls.columns)
        return number_of(f"{where}: column {column!r}", column_value(where, row, column)), ()

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the options that examples and range lead to: each number, or quantiles of many; or those asked for."""
        assert isinstance(asked, OrdinalOptions)
        if asked.values is not None:
            pairs = sorted((number, word) for word, number in asked.values.items())
            return cls(tuple(number for number, _ in pairs), tuple((word,) for _, word in pairs), asked.coverage)
        known = [float(record.label) for record in records if record.label is not None]
        if asked.range is not None:
            _check_range(records, *asked.range)
        distinct = sorted({*known, *(asked.range or ())})
        if len(distinct) <= _MOST:
            names = names_of(distinct)
            return cls(tuple(distinct), words_of(names, label_words), asked.coverage)
        quantiles = {float(np.quantile(known, share)): word for share, word in reversed(_QUANTILES.items())}
        if asked.range is not None:  # the ends are those of the range
            inner = {number: word for number, word in quantiles.items() if min(known) < number < max(known)}
            quantiles = inner | {asked.range[0]: _QUANTILES[0.0], asked.range[1]: _QUANTILES[1.0]}
        numbers = tuple(sorted(quantiles))
        names = names_of(numbers)
        chosen = label_words(names) if callable(label_words) else label_words
        given = None if chosen is None else words_of(names, chosen)
        return cls(numbers, given or tuple((quantiles[number],) for number in numbers), asked.coverage)

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """The label words of each number, by the number."""
        return dict(zip(names_of(self.numbers), self.words, strict=True))

    @property
    def undecided(self) -> Self:
        """The same numbers with a margin of 0."""
        return replace(self, margin=0.0)

    def joined(self, others: Sequence[AnswerSpace]) -> Self:
        """Return the space with the mean margin of this one and of others."""
        margins = [own.margin for own in (self, *others) if isinstance(own, Ordinal)]
        return self if len(set(margins)) == 1 else replace(self, margin=float(np.mean(margins)))

    def gold(self, record: Record) -> float:
        """Return a record's number.

        Raises:
            DataError: it is no number, or not in the range of the options.
        """
        found = number_of("the label", record.label)
        if not self.numbers[0] <= found <= self.numbers[-1]:
            raise DataError(
                f"the number {found:g} is not in the range {self.numbers[0]:g} to {self.numbers[-1]:g}; fix it, or "
                "give the answers a wider range"
            )
        return found

    def label(self, gold: Gold) -> float:
        """Return the number."""
        return self.gold(Record({}, gold))

    def shares(self, golds: Sequence[Gold]) -> Values:
        """Return how right each option is `[B, O]`; each row adds up to 1 and expects the right number."""
        places = np.interp([_known(gold) for gold in golds], self.numbers, range(self.size))
        found: Values = np.maximum(0.0, 1 - np.abs(places[:, None] - np.arange(self.size)))
        return found

    def probabilities(self, values: Values) -> Values:
        """Return the probability of each option `[..., O]`."""
        return softmax(values)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the expected numbers; the confidence is the probability of the option nearest to each."""
        means = self.expected(probabilities)
        near = probabilities[np.arange(len(means)), self.nearest(means)].tolist()
        names = list(self.options)
        return [
            Decision(mean, confidence, dict(zip(names, row, strict=True)), (low, high))
            for mean, confidence, row, (low, high) in zip(
                means.tolist(), near, probabilities.tolist(), self.intervals(probabilities).tolist(), strict=True
            )
        ]

    def expected(self, probabilities: Values) -> Values:
        """Return the expected number `[...]` of probabilities `[..., O]`."""
        found: Values = probabilities @ np.array(self.numbers)
        return found.clip(self.numbers[0], self.numbers[-1])

    def nearest(self, numbers: Sequence[float] | Values) -> np.ndarray:
        """Return the place `[B]` of the option nearest to each number; the lower one where two are as near."""
        found: np.ndarray = np.abs(np.asarray(numbers, dtype=float)[:, None] - np.array(self.numbers)).argmin(1)
        return found

    def middle(self, probabilities: Values) -> Values:
        """Return between which options the middle part of the probability lies `[B, 2]`."""
        below, above = probabilities.cumsum(-1), probabilities[..., ::-1].cumsum(-1)[..., ::-1]
        tail = (1 - self.coverage) / 2 + 1e-9  # what may lie outside on one side, and a rounding error
        numbers = np.array(self.numbers)
        return np.stack(
            [numbers[(below >= tail).argmax(-1)], numbers[self.size - 1 - (above >= tail)[..., ::-1].argmax(-1)]], -1
        )

    def intervals(self, probabilities: Values) -> Values:
        """Return the interval `[B, 2]` of each answer, which holds the answer and lies in the range."""
        means = self.expected(probabilities)
        low, high = self.middle(probabilities).T
        return np.stack([np.minimum(low - self.margin, means), np.maximum(high + self.margin, means)], -1).clip(
            self.numbers[0], self.numbers[-1]
        )

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return mean absolute error, Spearman's rank correlation, kappa of the nearest options, share in intervals.

        Kappa has quadratic weights (scikit-learn). Correlation and kappa of numbers that are all alike are 0.
        """
        found, truth = np.array([own.value for own in decisions]), np.array([_known(gold) for gold in golds])
        error = float(np.abs(found - truth).mean())
        ends = np.array([own.interval for own in decisions])
        return {
            self.primary: -error,
            "mean_absolute_error": error,
            "spearman": _spearman(found, truth),
            "quadratic_weighted_kappa": self._kappa(found, truth),
            "interval_coverage": float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()),
        }

    def class_numbers(self, golds: Sequence[Gold]) -> list[int]:
        """Return the place of the option nearest to each number, -1 where none is known."""
        return [-1 if gold is None else int(self.nearest([_known(gold)])[0]) for gold in golds]

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return the nearest options; a small group joins the one next to it."""
        return neighbouring_strata(self.class_numbers(golds))

    def written(self, example: Example, gold: Gold) -> str:
        """Return the first label word of the option nearest to a number."""
        return self.words[self.class_numbers([gold])[0]][0]

    @property
    def _shown(self) -> str:
        return ", ".join(names_of(self.numbers))

    def _kappa(self, found: Values, truth: Values) -> float:
        from sklearn.metrics import cohen_kappa_score

        pair = self.nearest(truth), self.nearest(found)
        if len(np.unique(pair)) < 2:
            return 0.0
        return float(cohen_kappa_score(*pair, weights="quadratic", labels=range(self.size)))


def names_of(numbers: Sequence[float]) -> tuple[str, ...]:
    """Return numbers as they are written: with 12 digits, or with 17 where two would look alike."""
    for digits in (12, 17):
        found = tuple(f"{number:.{digits}g}" for number in numbers)
        if len(set(found)) == len(set(numbers)):
            break
    return found


def number_of(where: str, value: Any) -> float:
    """Return a number, of one or of a string that is written as one.

    Raises:
        DataError: there is none, or it is not finite.
    """
    found = python_value(value)
    if is_missing(found) or (isinstance(found, str) and not found.strip()):
        raise DataError(f"{where}: the number is missing; give one or remove the row")
    try:
        number = float(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        is_huge = (
            isinstance(found, int) and found.bit_length() > 1000
        )  # Python writes no more than some thousand digits
        shown = "one of so many digits" if is_huge else " ".join(repr(found).split())[:40]
        raise DataError(f"{where}: {shown} is no number; give one, such as 3.5")
    return number


def _check_range(records: Sequence[Record], least: float, greatest: float) -> None:
    """Raise DataError, which names the row and its file, where a number is outside of the range."""
    for number, record in enumerate(records, start=1):
        if record.label is not None and not least <= float(record.label) <= greatest:
            raise DataError(
                f"{record.place(number)}: the number {float(record.label):g} is not in the range {least:g} to "
                f"{greatest:g}; fix it, or give the answers a wider range"
            )


def neighbouring_strata(strata: Sequence[int]) -> list[int]:
    """Return ordered strata that are not too small: the smallest joins the smaller one next to it until none is."""
    sizes, smallest = Counter(strata), smallest_stratum(len(strata))
    joined = {own: own for own in sizes}
    while len(sizes) > 1:
        order = sorted(sizes)
        small = min(order, key=lambda own: (sizes[own], own))
        if sizes[small] >= smallest:
            break
        at = order.index(small)
        into = min(order[max(0, at - 1) : at] + order[at + 1 : at + 2], key=lambda own: (sizes[own], own))
        sizes[into] += sizes.pop(small)
        joined = {own: into if to == small else to for own, to in joined.items()}
    return [joined[own] for own in strata]


def _known(gold: Gold) -> float:
    if not isinstance(gold, int | float):
        raise DataError(f"{gold!r} is no number; give the right answer of each text")
    return float(gold)


def _spearman(found: Values, truth: Values) -> float:
    from scipy.stats import spearmanr

    if len(np.unique(found)) < 2 or len(np.unique(truth)) < 2:
        return 0.0
    return float(spearmanr(found, truth).statistic)
