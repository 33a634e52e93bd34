"""The kind of answers that rows of data have, where their columns and values leave no doubt."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cuecraft.core.errors import DataError, named
from cuecraft.data.labels import is_missing, python_value
from cuecraft.task.answers.base import AnswerColumns
from cuecraft.task.answers.choices import Choices

#: Usual columns of numbers.
NUMBERS = ("number", "score", "stars", "rating")
#: Columns that show the kind of answers, in addition to those that are named.
SHOWING = ("label", "labels", "answer", "spans", "tags", "ner_tags", "tokens", "words", *NUMBERS)
#: Rows that are looked at.
LOOKED_AT = 1000
_MISTAKES = 0.2  # share of answers up to which those that are no option of their row are mistakes; so is a single one
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
        return _of_options(rows, columns)
    if columns.label is not None:
        return _of_column(rows, columns.label)
    if "label" in there:
        return _of_column(rows, "label")
    shown = _shown(rows, there)
    if len({kind for kind, _ in shown}) > 1:
        seen = "; ".join(f"{kind}: {reason}" for kind, reason in shown)
        kinds = " or ".join(dict.fromkeys(kind for kind, _ in shown))
        raise DataError(f"the rows could be of several kinds ({seen}); say which with {named('task.answers')} {kinds}")
    if not shown or (shown[0][0] == "cloze" and not _are_open(rows)):
        return "labels", "each row has one label"
    return shown[0]


def _shown(rows: Sequence[Mapping[str, Any]], there: Collection[str]) -> list[tuple[str, str]]:
    """Return each kind that a column shows where there is no `label`, and what shows it."""
    found = []
    if "labels" in there:
        found.append(("multilabel", "there is a column 'labels', and none 'label'"))
    if "spans" in there:
        found.append(("tokens", "there is a column 'spans', and none 'label'"))
    tagged = [name for name in ("tags", "ner_tags") if _have_lists(rows, name)]
    if tagged and any(_have_lists(rows, name) for name in ("tokens", "words", "text")):
        found.append(("tokens", f"{tagged[0]!r} has a tag for each word"))
    answers = _answers(rows)
    if _have_lists(rows, "answer"):
        found.append(("cloze", "'answer' has several right answers"))
    elif answers:
        found.append(("cloze", f"'answer' has {len(answers)} different strings"))
    numbers = next((name for name in NUMBERS if _are_numbers(rows, name)), None)
    if numbers is not None:
        found.append(("ordinal", f"{numbers!r} has numbers, and there is no column 'label'"))
    return found


def _answers(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {row["answer"] for row in rows if isinstance(row.get("answer"), str)}


def _are_open(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether answers are too many different strings to be classes, or several for a row."""
    return len(_answers(rows)) > _CLASSES or _have_lists(rows, "answer")


def _of_options(rows: Sequence[Mapping[str, Any]], columns: AnswerColumns) -> tuple[str, str]:
    """Return that rows with options are choices: the answer of each is one of them, but for a few that are mistakes.

    Raises:
        DataError: other rows than a few have an answer that is none of their options.
    """
    faults, answered = [], 0
    for number, row in enumerate(rows, start=1):
        if not _is_blank(python_value(row.get(columns.label_in(row, Choices.columns)))):
            answered += 1
            try:
                Choices.read(f"row {number}", row, columns)
            except DataError as error:
                faults.append(str(error).partition(";")[0])
    if len(faults) > max(1, _MISTAKES * answered):
        raise DataError(
            f"rows have options in {columns.options!r}, which do not go with {len(faults)} of {answered} answers "
            f"({faults[0]}); say what the answers are with {named('task.answers')} choices, labels or another kind"
        )
    return "choices", f"rows have options in {columns.options!r}"


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
