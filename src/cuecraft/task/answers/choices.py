"""Choices: each text brings its own options, of any number and length, of which one is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from cuecraft.core.errors import DataError, LabelWordError, named
from cuecraft.data import Record
from cuecraft.data.labels import is_missing, python_value
from cuecraft.data.records import check_nul
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace, Decision, Gold, Values, softmax
from cuecraft.task.answers.words import Words
from cuecraft.task.example import Example

Scoring = Literal["auto", "sum", "token", "pmi"]
#: What stands in the fields of a text without content.
CONTENT_FREE = "N/A"
_SHOWN = 60  # characters of an option in an error
_DIGITS = 18  # of a place that is a string; Python reads no more than some thousands


class ChoiceOptions(AnswerOptions):
    """What is asked of choices."""

    kind: Literal["choices"] = "choices"
    scoring: Scoring = "auto"
    content_free: str = CONTENT_FREE


@dataclass(frozen=True)
class Choices(AnswerSpace):
    """One of the options that a text brings (`Example.options`); a gold is the place of the right one, from 0.

    An option stands at the answer slot as a label word does, with the template's space before it and nothing behind
    it. Where one option begins another, both are scored as they are. Probabilities are the softmax of scores, which
    are, with the n tokens t of an option and log-probabilities (nats) over the whole vocabulary:

    - `sum`: ``sum_i log p(t_i | text, t_<i)``, the log-likelihood of the option;
    - `token`: that divided by n, the option's own tokens: neither the text's, nor the prompt's, nor any end;
    - `pmi`: the `sum`, less the same behind the template with `content_free` in place of all fields, under the same
      prompt and weights: what the text adds (PMI_DC; Holtzman et al., EMNLP 2021, arXiv 2104.08315);
    - `auto`: one of these, chosen on training examples when a problem is prepared (`cuecraft.methods.settling`).

    Args:
        scoring: how options are scored.
        content_free: what stands in the fields of a text without content.
        shown: whether an answer is shown as the place of the option, from 0, or as its text; as in the training data.

    Raises:
        DataError: `content_free` is empty, so that nothing might stand before an option.
    """

    kind: ClassVar[str] = "choices"
    primary: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("mean_reciprocal_rank",)
    calibrations: ClassVar[tuple[str, ...]] = ("none", "fitted")
    options_kind: ClassVar[type[AnswerOptions]] = ChoiceOptions
    columns: ClassVar[tuple[str, ...]] = ("answer", "label")
    brings_options: ClassVar[bool] = True

    scoring: Scoring = "auto"
    content_free: str = CONTENT_FREE
    shown: Literal["place", "text"] = "place"

    def __post_init__(self) -> None:
        if not self.content_free.strip():
            raise DataError("content_free is empty; give words that say nothing, such as N/A")

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[Any, tuple[str, ...]]:
        """Return the answer of a row as it has it, a place or a text, and its options; raises as `AnswerSpace.read`."""
        options = cls.read_options(where, row, columns)
        column = columns.label_in(row, cls.columns)
        answer = python_value(row.get(column))
        hint = "give the place of the right option, counted from 0, or its text"
        if is_missing(answer) or (isinstance(answer, str) and not answer.strip()):
            raise DataError(f"{where}: no answer in {column!r}; {hint}")
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, str):
            answer = answer.strip()
            # A file of strings alone, such as CSV, has places as strings.
            is_place = answer not in options and answer.isdecimal() and len(answer) <= _DIGITS
            answer = int(answer) if is_place else answer
        if _place(answer, options) is None:
            shown = _short(answer)
            raise DataError(f"{where}: answer {shown} in {column!r} is none of its {len(options)} options; {hint}")
        return answer, options

    @classmethod
    def read_options(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[str, ...]:
        """Return the options of a row, without outer spaces; raises as `AnswerSpace.read_options`."""
        column = columns.options
        if column not in row:
            raise DataError(
                f"{where}: no column {column!r} with the options; give each row a list of them there, or name another "
                f"column ({named('data.options_column')})"
            )
        options = _options(where, column, python_value(row[column]), columns.separator)
        _check_options(where, column, options)
        return options

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the space as asked for; raises as `AnswerSpace.of`."""
        if label_words is not None and not callable(label_words):
            raise LabelWordError("label words do not go with choices, whose options are words already; leave them out")
        for number, record in enumerate(records, start=1):
            if not record.options:
                raise DataError(f"row {record.row or number} brings no options; give each row a list of at least two")
        are_texts = all(isinstance(record.label, str) for record in records)
        own = asked if isinstance(asked, ChoiceOptions) else ChoiceOptions()
        return cls(own.scoring, own.content_free, "text" if are_texts else "place")

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """None: each text brings its own."""
        return {}

    @property
    def norm(self) -> Literal["row", "token"]:
        """By the mean over an option's tokens, or the log of its probability."""
        return "token" if self.scoring == "token" else "row"

    @property
    def variants(self) -> tuple[Choices, ...]:
        """The ways to score options where that is left open."""
        if self.scoring != "auto":
            return ()
        return tuple(replace(self, scoring=scoring) for scoring in get_args(Scoring) if scoring != "auto")

    def options_of(self, example: Example) -> Mapping[str, tuple[str, ...]]:
        """Return the options of a text, each its own word.

        Raises:
            DataError: the text brings fewer than two, or two that are alike.
        """
        _check_options("", "choices", example.options)
        return {option: (option,) for option in example.options}

    def reference(self, example: Example) -> Example | None:
        """Return the text without content that `pmi` compares with, with the same options; None for other scorings."""
        if self.scoring != "pmi":
            return None
        return Example(dict.fromkeys(example.fields, self.content_free), options=example.options)

    def gold(self, record: Record) -> int:
        """Return the place of the right option.

        Raises:
            DataError: it is none of the record's options.
        """
        found = _place(record.label, record.options)
        if found is None:
            raise DataError(f"answer {_short(record.label)} is none of the row's {len(record.options)} options; fix it")
        return found

    def label(self, gold: Gold) -> int:
        """Return the place of the right option."""
        if not isinstance(gold, int) or gold < 0:
            raise DataError(f"answer {gold!r}; there is no such place")
        return gold

    def probabilities(self, values: Values) -> Values:
        """Return the probabilities `[..., O]` of options, 0 behind a text's own."""
        return softmax(values)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the likeliest option of each text; of equally likely ones the first."""
        found = []
        for row, example in zip(probabilities, examples, strict=True):
            own = dict(zip(example.options, row.tolist(), strict=False))
            place = int(row.argmax())
            option = example.options[place]
            found.append(Decision(option if self.shown == "text" else place, own[option], own))
        return found

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return accuracy, and the mean of 1 / rank of the right option, of equally likely ones in their order."""
        ranks = []
        for decision, gold in zip(decisions, golds, strict=True):
            assert isinstance(gold, int)
            shares = list(decision.options.values())
            order = sorted(range(len(shares)), key=lambda place: -shares[place])  # which is stable
            ranks.append(1 + order.index(gold))
        hits = np.array(ranks) == 1
        return {self.primary: float(hits.mean()), "mean_reciprocal_rank": float((1 / np.array(ranks)).mean())}

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return one group: places mean nothing."""
        return [0] * len(golds)

    def written(self, example: Example, gold: Gold) -> str:
        """Return the right option."""
        assert isinstance(gold, int)
        return example.options[gold]


def _place(answer: Any, options: Sequence[str]) -> int | None:
    """Return the place of an answer among options, of which it is the place or the text; None for none."""
    if isinstance(answer, str):
        return options.index(answer) if answer in options else None
    is_place = isinstance(answer, int) and not isinstance(answer, bool) and answer in range(len(options))
    return answer if is_place else None


def _options(where: str, column: str, value: Any, separator: str | None) -> tuple[str, ...]:
    """Return options as a row has them: a list, or a string of JSON or of parts with a separator between."""
    if isinstance(value, str) and separator:
        value = value.split(separator)
    elif isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: {column!r} is no list of JSON; fix it") from None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if is_missing(value) or not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: {column!r} is {_short(value)}, and no list of options; give a list, or say what separates them "
            f"({named('data.separator')})"
        )
    found = []
    for number, option in enumerate(map(python_value, value), start=1):
        name = f"option {number} in {column!r}"
        if isinstance(option, bool) or not isinstance(option, str | int | float):
            raise DataError(f"{where}: {name} is {_short(option)}; give a text")
        own = _text_of(f"{where}: {name}", option)
        check_nul(where, name, own)
        if any("\ud800" <= character <= "\udfff" for character in own):
            raise DataError(f"{where}: {name} holds half a character (a lone surrogate); fix it")
        found.append(own)
    return tuple(found)


def _check_options(where: str, column: str, options: Sequence[str]) -> None:
    """Raise DataError where options cannot be chosen among."""
    where = where and f"{where}: "
    if len(options) < 2:
        found = "no option" if not options else "only one option"
        raise DataError(f"{where}{found} in {column!r}; give at least two")
    firsts: dict[str, int] = {}
    for number, option in enumerate(options, start=1):
        if not option.strip():
            raise DataError(f"{where}option {number} in {column!r} is empty; give it a text, or remove it")
        first = firsts.setdefault(option, number)
        if first != number:
            raise DataError(
                f"{where}options {first} and {number} in {column!r} are alike ({_short(option)}); remove one of them"
            )


def _text_of(where: str, option: str | int | float) -> str:
    try:
        return str(option).strip()
    except ValueError:  # Python writes no more than some thousands of digits
        raise DataError(f"{where} is a number of too many digits; give a text") from None


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a number of too many digits"
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
