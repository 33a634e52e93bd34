"""The kind of answers that rows of data have, where their columns and values leave no doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.core.errors import DataError, named
from cuecraft.data.labels import is_missing, python_value
from cuecraft.task.answers.base import AnswerColumns

#: Usual columns of numbers.
NUMBERS = ("number", "score", "stars", "rating")
#: Columns that show the kind of answers, in addition to those that are named.
SHOWING = ("label", "labels", "answer", "spans", "tags", "ner_tags", "tokens", "words", *NUMBERS)
#: Rows that are looked at.
LOOKED_AT = 1000
_CLASSES = 10  # distinct strings under `answer` up to which they may be classes


def inferred_kind(rows: Sequence[Mapping[str, Any]], columns: AnswerColumns) -> tuple[str, str]:
    """Return the kind of answers of training rows, and what shows it.

    Args:
        rows: values by column, as a file has them.
        columns: where label and options stand; a named label column alone is looked at.

    Raises:
        DataError: the rows could be of several kinds.
    """
    if not rows:
        return "labels", "there are no rows"
    there = {name for row in rows for name in row}
    if _are_given(rows, columns.options) and (columns.label or there & {"answer", "label"}):
        return "choices", f"rows have options in {columns.options!r}"
    if columns.label is not None:
        return _of_column(rows, columns.label)
    if "label" in there:
        return _of_column(rows, "label")
    both = [name for name in ("labels", "spans") if name in there]
    if len(both) > 1:
        raise DataError(
            "the rows have labels (a set for each text) and spans (in the text); say which with "
            f"{named('task.answers')} multilabel or tokens"
        )
    if both:
        return ("multilabel" if both == ["labels"] else "tokens"), f"there is a column {both[0]!r}, and none 'label'"
    tagged = [name for name in ("tags", "ner_tags") if _have_lists(rows, name)]
    if tagged and any(_have_lists(rows, name) for name in ("tokens", "words", "text")):
        return "tokens", f"{tagged[0]!r} has a tag for each word"
    answers = {row["answer"] for row in rows if isinstance(row.get("answer"), str)}
    if len(answers) > _CLASSES:
        return "cloze", f"'answer' has {len(answers)} different strings"
    if _have_lists(rows, "answer"):
        return "cloze", "'answer' has several right answers"
    for name in NUMBERS:
        if _are_numbers(rows, name):
            return "ordinal", f"{name!r} has numbers, and there is no column 'label'"
    return "labels", "each row has one label"


def _are_given(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether a row has something in a column; one that has not is refused, with its number, when it is read."""
    return any(not _is_blank(python_value(row.get(column))) for row in rows)


def _have_lists(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return any(isinstance(row.get(column), list | tuple) for row in rows)


def _are_numbers(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether all values of a column are numbers, or strings that are written as one, as those of CSV are."""
    values = [value for row in rows if not _is_blank(value := python_value(row.get(column)))]
    return bool(values) and all(map(_is_number, values))


def _is_blank(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return math.isfinite(float(value))
        except ValueError:
            return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_column(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[str, str]:
    """Return the kind that the values of the label column show."""
    found = [python_value(row.get(column)) for row in rows]
    values = [value for value in found if not is_missing(value)]
    lists = [value for value in values if isinstance(value, list | tuple)]
    if lists and len(lists) == len(values):
        parts = [part for value in lists for part in value]
        if parts and all(isinstance(part, Mapping) for part in parts):
            return "tokens", f"{column!r} has spans"
        if all(isinstance(part, str) for part in parts):
            return "multilabel", f"{column!r} has a list for each row"
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(values) and any(not float(value).is_integer() for value in numbers):
        return "ordinal", f"{column!r} has numbers that are not whole"
    return "labels", f"{column!r} has one label for each row"
