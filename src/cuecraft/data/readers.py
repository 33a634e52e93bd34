"""Readers for CSV, TSV, JSONL and Parquet files, the packaged demo data, and Hugging Face `datasets` names."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cuecraft import assets
from cuecraft.data.records import Record
from cuecraft.errors import DataError

Row = tuple[str, dict[str, Any]]  # where it stands (for error messages), and its columns

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_records(
    source: str | Path, text_columns: Sequence[str] = ("text",), label_column: str | None = "label"
) -> list[Record]:
    """Read labelled texts from a file, a ``demo:`` data set or a `datasets` name.

    Args:
        source: path ending in .csv, .tsv, .jsonl or .parquet; ``demo:movie-reviews``; or ``hub-name[:split]``
            of a Hugging Face data set (default split ``train``; needs the extra ``hub-data``).
        text_columns: columns that hold text; each becomes a template field of that name.
        label_column: column of class names; None for unlabelled data.

    Raises:
        DataError: the file is missing, unreadable or empty, a column is missing, or a text is empty or NaN.
    """
    records = [_record(where, row, text_columns, label_column) for where, row in _rows(source, label_column)]
    if not records:
        raise DataError(f"{source}: no rows; give a file with at least one example")
    return records


def read_partly_labelled(
    source: str | Path, text_columns: Sequence[str] = ("text",), label_column: str = "label"
) -> list[Record]:
    """Read texts of which some, or all, have no label: their cell is empty, or the column is not there.

    Args:
        source: as for `read_records`, or a .txt file with a text a line.
        text_columns: as for `read_records`; a .txt file has none, and its texts are the field ``text``.
        label_column: column of class names, where it is there.

    Raises:
        DataError: as `read_records`, but for labels.
    """
    records = []
    if Path(source).suffix == ".txt":
        records = [Record({"text": line}) for line in stream_texts(source)]
    else:
        for where, row in _rows(source, label_column):
            label = row.get(label_column)
            is_labelled = not _is_missing(label) and bool(str(label).strip())
            records.append(_record(where, row, text_columns, label_column if is_labelled else None))
    if not records:
        raise DataError(f"{source}: no rows; give a file with at least one example")
    return records


def stream_texts(source: str | Path, column: str = "text") -> Iterator[str]:
    """Yield unlabelled texts one after another, the whole of them never in memory; empty ones are left out.

    Args:
        source: as for `read_records`, or a .txt file with a text a line. A .csv, .jsonl, .parquet or .txt file is read
            piece by piece.
        column: of text; a .txt file has none.

    Raises:
        DataError: the file is missing or unreadable, the column is missing, or a value is no text.
    """
    path = Path(source)
    if path.suffix == ".txt":
        yield from _txt_lines(path)
        return
    for where, row in _rows(source, label_column=None):
        value = _column(where, row, column)
        if not (_is_missing(value) or (isinstance(value, str) and not value.strip())):
            yield text_value(where, column, value)


def _txt_lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as handle:
            yield from (line.rstrip("\r\n") for line in handle if line.strip())
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error})") from error


def _rows(source: str | Path, label_column: str | None) -> Iterator[Row]:
    name = str(source)
    if assets.is_asset(name):
        return _asset_rows(name, label_column)
    path = Path(source)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise DataError(f"{path}: no such file; check the path")
        return _file_rows(path)
    if path.exists():
        raise DataError(f"{path}: cannot tell the format; name the file {', '.join('*' + s for s in SUFFIXES)}")
    return _hub_rows(name)


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return _csv_rows(path, "\t" if path.suffix == ".tsv" else ",")


def _asset_rows(name: str, label_column: str | None) -> Iterator[Row]:
    asset, path = assets.data_asset(name)
    for where, row in _csv_rows(path, ","):
        if all(row[column] == value for column, value in asset.only.items()):
            if label_column in row:
                row[label_column] = asset.label_names.get(row[label_column], row[label_column])
            yield where, row


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row:
                    raise DataError(f"{where}: more values than columns; put quotation marks around text with commas")
                yield where, dict(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as UTF-8 {path.suffix[1:].upper()} ({error})") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON ({error}); mend or remove the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a JSON {type(row).__name__}, but each line must be an object")
            yield where, row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow; pip install 'cuecraft[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for number, row in enumerate(rows, start=1):
                yield f"{path} row {number}", row
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _hub_rows(name: str) -> Iterator[Row]:
    hub_name, _, split = name.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name}: no such file, and Hugging Face data sets need an extra; check the path, "
            "or pip install 'cuecraft[hub-data]'"
        ) from error
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(hub_name, split=split or "train")
    except Exception as error:  # `datasets` raises many unrelated types for "not found" and "no network"
        raise DataError(f"{name}: cannot load this data set ({str(error).splitlines()[0]})") from error
    names = {
        column: feature.names for column, feature in getattr(rows, "features", {}).items() if hasattr(feature, "names")
    }
    for number, row in enumerate(rows, start=1):
        for column, labels in names.items():
            if isinstance(row[column], int) and row[column] >= 0:
                row[column] = labels[row[column]]
        yield f"{name} row {number}", row


def _record(where: str, row: dict[str, Any], text_columns: Sequence[str], label_column: str | None) -> Record:
    fields = {column: text_value(where, column, _column(where, row, column)) for column in text_columns}
    if label_column is None:
        return Record(fields)
    label = _column(where, row, label_column)
    if _is_missing(label) or not str(label).strip():
        raise DataError(f"{where}: label column {label_column!r} is empty; give a class or remove the row")
    return Record(fields, str(label).strip())


def _column(where: str, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; the columns are {', '.join(map(repr, row))}")
    return row[column]


def text_value(where: str, column: str, value: Any) -> str:
    """Return a text as it is, or raise DataError where it is missing, NaN, empty, not text or not Unicode."""
    if _is_missing(value):
        raise DataError(f"{where}: {column!r} is missing (NaN); fill it in or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {type(value).__name__}, not text; convert it to a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {column!r} holds half a character (a lone surrogate); mend the text") from None
    if not value.strip():
        raise DataError(f"{where}: {column!r} is empty; fill it in or remove the row")
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
