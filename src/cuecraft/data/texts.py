"""Texts and labels as Python has them: lists, arrays, mappings, data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.data.readers import read_records, stream_texts, text_value
from cuecraft.data.records import Record
from cuecraft.errors import DataError

Texts = Any  # a sequence of strings or of mappings from field to string, a NumPy array, or a pandas DataFrame


def unlabelled(
    fields: Sequence[str], lines: Sequence[str], file: Path | None, columns: Sequence[str] | None
) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file.

    Args:
        fields: of the template.
        lines: texts; not looked at where there is a file.
        file: with columns, or .txt with a text a line.
        columns: of text in the file; None for those named as the fields.

    Raises:
        DataError: no texts, or lines for a template of several fields.
    """
    if file is not None and file.suffix != ".txt":
        return read_records(file, columns or fields, label_column=None)
    if file is not None:
        lines = list(stream_texts(file))
    if len(fields) > 1:
        raise DataError(f"the prompt takes the fields {', '.join(fields)}; give them as columns of a --file")
    if not lines:
        raise DataError("no text to classify; give texts as arguments, on stdin or in a --file")
    return [Record({fields[0]: line}) for line in lines]


def as_records(texts: Texts, labels: Sequence[Any] | None = None) -> list[Record]:
    """Return records of texts given as strings, mappings, an array or a DataFrame.

    Raises:
        DataError: a text is missing or no text, or there are not as many labels as texts.
    """
    if isinstance(texts, str | Mapping):
        raise DataError("one text was given where a list of texts is expected; write [text]")
    rows = _rows(texts)
    labels = None if labels is None else list(labels)  # a pandas Series would be indexed by its own index
    if labels is not None and len(labels) != len(rows):
        raise DataError(f"{len(rows)} texts but {len(labels)} labels; give one label for each text")
    records = []
    for number, row in enumerate(rows, start=1):
        fields = dict(row) if isinstance(row, Mapping) else {"text": row}
        where = f"row {number}"
        checked = {str(name): text_value(where, str(name), value) for name, value in fields.items()}
        label = None if labels is None else str(label_value(where, labels[number - 1]))
        records.append(Record(checked, label))
    if not records:
        raise DataError("no texts were given; give at least one")
    return records


def _rows(texts: Texts) -> list[Any]:
    if hasattr(texts, "to_dict") and hasattr(texts, "columns"):  # a DataFrame
        rows: list[Any] = texts.to_dict("records")
        return rows
    rows = list(texts)
    # scikit-learn's containers are two-dimensional: a column of texts is an [N, 1] array.
    return [row[0] if isinstance(row, np.ndarray | list | tuple) and len(row) == 1 else row for row in rows]


def label_value(where: str, value: Any) -> Any:
    """Return a label as a plain Python value.

    Args:
        where: it stands, for the error.
        value: as the user has it.

    Raises:
        DataError: it is missing, or neither text nor a number.
    """
    found = python_value(value)
    is_missing = found is None or type(found).__name__ in ("NAType", "NaTType") or found != found
    if is_missing or (isinstance(found, str) and not found.strip()):
        raise DataError(f"{where}: the label is missing; give a class or remove the row")
    if not isinstance(found, str | int | float):
        raise DataError(f"{where}: the label is a {type(found).__name__}; use strings or numbers as classes")
    return found


def python_value(value: Any) -> Any:
    """Return a NumPy scalar as the Python value it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def class_names(labels: Sequence[Any]) -> dict[str, Any]:
    """Return the classes by name, in the order that scikit-learn gives them."""
    found = {str(label_value(f"row {row}", label)): python_value(label) for row, label in enumerate(labels, start=1)}
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[1], str), item[1])))
