"""Few-shot data sets as people have them: rows with a text and a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.errors import DataError

#: Rows ``{"text": ..., "label": ...}``, or the same as columns, as a slice of a Hugging Face data set is.
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]


def texts_and_labels(rows: Rows) -> tuple[list[Any], list[Any]]:
    """Return the texts and the labels of rows.

    Raises:
        DataError: no rows, or a row without text or label.
    """
    if isinstance(rows, Mapping):
        columns = [rows.get("text"), rows.get("label")]
        if any(column is None for column in columns):
            raise DataError(f"the data has columns {', '.join(map(repr, rows))}; it needs 'text' and 'label'")
        texts, labels = (list(column) for column in columns if column is not None)
        if len(texts) != len(labels):
            raise DataError(f"{len(texts)} texts but {len(labels)} labels; give one label for each text")
    else:
        rows = list(rows)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping) or not {"text", "label"} <= set(row):
                raise DataError(f"row {number} is not a mapping with 'text' and 'label'")
        texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    if not texts:
        raise DataError("no rows were given; give a few of each class")
    return texts, labels
