"""Texts and labels as Python has them: lists, arrays, mappings, data frames, Arrow tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.core.errors import DataError, LabelWordError, MethodError, named
from cuecraft.data.files import STDIN, Format, kind_of
from cuecraft.data.labels import is_missing, label_name, python_value, words_by_name
from cuecraft.data.readers import AS_USUAL, Reading, read_lines, read_records, stream_texts, text_value
from cuecraft.data.records import BadRow, Record, RowAnswers, check_names

#: Strings or mappings from field to string, one after another; an array; a pandas DataFrame; or an Arrow table.
_MOST_COPIES = 1_000_000  # rows that weights may stand for
Texts = Any
#: Classes, one after another: a list, a generator, an array, a Series, a DataFrame of one column, or an Arrow array.
Labels = Any


def stdin_texts() -> list[str]:
    """Return the lines of stdin that are not blank, as `stream_texts` gives those of a file.

    Raises:
        DataError: stdin is closed, or a line is no UTF-8.
    """
    return list(stream_texts(STDIN))


def unlabelled(
    fields: Sequence[str],
    lines: Sequence[str],
    file: Path | None,
    columns: Sequence[str] | None,
    reading: Reading = AS_USUAL,
    answers: RowAnswers | None = None,
) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file.

    Args:
        fields: of the template.
        lines: texts; not looked at where there is a file.
        file: with columns, or .txt or .log with a text a line; ``-`` for the lines of stdin.
        columns: of text in the file, those that the template does not name left unread; None for those named as the
            fields.
        reading: the delimiter, and what becomes of bad rows.
        answers: how options that rows bring are read; None where they bring none.

    Raises:
        DataError: no texts, or lines for a template of several fields or where each text brings options.
    """
    is_lines = file is not None and (str(file) == STDIN or kind_of(file)[0] is Format.TEXT)
    if file is not None and not is_lines:
        used = fields if columns is None or set(fields) <= set(columns) else columns
        return read_records(file, used, None if answers is None else answers.unlabelled, reading)
    if answers is not None and answers.options:
        raise DataError(
            f"each text brings options of its own; give them in column {answers.options[0]!r} of a {named('file')}"
        )
    if len(fields) > 1:
        raise DataError(f"the prompt takes the fields {', '.join(fields)}; give them as columns of a {named('file')}")
    if file is not None:
        return read_lines(file, fields[0], reading)
    if not lines:
        raise DataError(f"no text to classify; give texts as arguments, on stdin or in a {named('file')}")
    records = [Record({fields[0]: line}, row=number) for number, line in enumerate(lines, start=1)]
    if reading.bad is not None:
        return _usable(records, "texts", reading)
    for number, line in enumerate(lines, start=1):
        text_value(f"row {number}", fields[0], line)
    return records


def _usable(records: Sequence[Record], source: str, reading: Reading) -> list[Record]:
    """Return the records whose texts can be used."""
    found, bad = [], []
    for number, record in enumerate(records, start=1):
        try:
            for name, text in record.fields.items():
                text_value(f"row {number}", name, text)
            found.append(record)
        except DataError as error:
            bad.append(BadRow(source, number, str(error)))
    if not found:
        raise DataError(f"{bad[0].reason} (so it is with all {len(bad)} rows: none can be used)")
    assert reading.bad is not None
    reading.bad.put(bad)
    return found


def as_labels(labels: Labels, what: str = "labels") -> list[Any]:
    """Return labels one after another, whatever holds them; each is still what the user has.

    Args:
        labels: see `Labels`.
        what: they are, for errors.

    Raises:
        DataError: they are no list of labels, or a table of several columns, such as one-hot.
    """
    if isinstance(labels, Mapping | str | bytes | set | frozenset) or labels is None:
        raise DataError(f"the {what} are {_article(labels)}; give them in a list")
    names = _columns(labels)
    if names is not None:
        if len(names) != 1:
            raise DataError(
                f"the {what} are a table of {len(names)} columns; give one column of classes, such as a one-hot "
                "table's .idxmax(axis=1)"
            )
        return [next(iter(row.values())) for row in _table_rows(labels, names)]
    shape = getattr(labels, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:
            raise DataError(
                f"the {what} have the shape {tuple(shape)}; give one class a row, such as one-hot rows' .argmax(1)"
            )
        labels = labels.reshape(-1)
    return _items(labels, what)


def as_label_words(label_words: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """Return label words by the name of their class; None for none.

    Args:
        label_words: a mapping from class to word or words; or a list, an array or a column of these in the order of the
            classes. A Series whose index is not just the row numbers is a mapping from its index.
        names: the classes in their order.

    Raises:
        LabelWordError: they are none of these, or there are not as many as classes.
        DataError: a class is none.
    """
    words = label_words
    if hasattr(words, "iloc") and getattr(words, "ndim", 0) == 2 and words.shape[1] == 1:
        words = words.iloc[:, 0]
    index = getattr(words, "index", None)
    if hasattr(words, "iloc") and words.ndim == 1 and type(index).__name__ != "RangeIndex":
        pairs = list(zip(words.index, words, strict=True))
        if len(dict(pairs)) < len(pairs):
            raise LabelWordError("label_words is a Series whose index has a class twice; give each class one row")
        return words_by_name(dict(pairs))
    if words is None or isinstance(words, Mapping | str | bytes | set | frozenset):
        return words_by_name(words)
    try:
        several = isinstance(words, np.ndarray) and words.ndim == 2 and words.shape[1] > 1  # words of each class
        listed = list(words) if several else as_labels(words, "label_words")
    except DataError:
        raise LabelWordError(
            f"label_words is {_article(words)} that is no list of words; give {{class: word}}, or a list in the "
            "classes' order"
        ) from None
    if len(listed) != len(names):
        raise LabelWordError(f"words for {len(listed)} classes, but there are {len(names)}: {', '.join(names)}")
    return dict(zip(names, listed, strict=True))


def rows_of(texts: Texts) -> list[Mapping[Any, Any]]:
    """Return texts one after another as mappings; a string is the field ``text``.

    Raises:
        DataError: they are no list of texts, or two columns have one name.
    """
    if isinstance(texts, str | bytes | Mapping):
        raise DataError("one text was given where a list of texts is expected; write [text]")
    return [row if isinstance(row, Mapping) else {"text": row} for row in _rows(texts)]


def as_records(
    texts: Texts, labels: Labels = None, fields: Sequence[str] | None = None, answers: RowAnswers | None = None
) -> list[Record]:
    """Return records of texts given as strings, mappings, an array, a DataFrame or an Arrow table.

    Args:
        texts: `[N]`; see `Texts`.
        labels: `[N]` classes, or answers of another kind; None for none.
        fields: that a template names; other columns may hold anything. None where every column is a field.
        answers: how labels and options are read of rows (`AnswerSpace.in_rows`); None for classes.

    Raises:
        DataError: a text is missing or no text, two columns have one name, or there are not as many labels as texts.
    """
    rows = rows_of(texts)
    if labels is not None:
        labels = as_labels(labels) if answers is None else _items(labels, "labels")
    if labels is not None and len(labels) != len(rows):
        raise DataError(f"{len(rows)} texts but {len(labels)} labels; give one label for each text")
    records = []
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        own = [name for name in row if answers is None or name not in answers.options]
        texts_of_row = {name: row[name] if answers is None else answers.text(row[name]) for name in own}
        found = _checked(where, texts_of_row, fields)
        if answers is None:
            records.append(Record(found, None if labels is None else label_name(where, labels[number - 1])))
        elif labels is None:
            records.append(Record(found, options=answers.read_options(where, row)))
        else:
            label, options = answers.read(where, {**row, answers.labels[0]: labels[number - 1]})
            records.append(Record(found, label, options=options))
    if not records:
        raise DataError("no texts were given; give at least one")
    return records


def held_out_records(
    dev: tuple[Texts, Labels] | None, fields: Sequence[str] | None = None, answers: RowAnswers | None = None
) -> list[Record] | None:
    """Return records of held-out texts and their labels; None for none.

    Args:
        dev: texts and labels.
        fields: as for `as_records`.
        answers: as for `as_records`.

    Raises:
        DataError: they are no pair, or as for `as_records`.
    """
    if dev is None:
        return None
    if not isinstance(dev, tuple | list) or len(dev) != 2:
        raise DataError(f"dev is {_article(dev)}; give a pair: (texts, labels)")
    return as_records(dev[0], as_labels(dev[1]) if answers is None else dev[1], fields, answers)


def weighed(records: Sequence[Record], sample_weight: Any) -> list[Record]:
    """Return records with their weights in a training, 1 on average; those of no weight are left out.

    Args:
        records: `[N]` the examples.
        sample_weight: `[N]` numbers of 0 or more, or one for all; None, like equal ones, for none.

    Raises:
        DataError: there are not as many, one is negative or no number, or all of a class are 0.
    """
    weights = example_weights(sample_weight, len(records))
    if weights is None:
        return list(records)
    _check_classes(records, weights)
    weights = weights / weights.max()  # their sum could overflow
    weights = weights * (np.count_nonzero(weights) / weights.sum())
    return [replace(record, weight=float(own)) for record, own in zip(records, weights, strict=True) if own > 0]


def repeated(records: Sequence[Record], sample_weight: Any, method: str) -> list[Record]:
    """Return each record as often as its weight says: what a weight means to a method that trains on no loss.

    Args:
        records: `[N]` the examples.
        sample_weight: as for `weighed`.
        method: its name, for the error.

    Raises:
        DataError: as `weighed`.
        MethodError: a weight is not a whole number.
    """
    weights = example_weights(sample_weight, len(records))
    if weights is None:
        return list(records)
    _check_classes(records, weights)
    if (weights / _MOST_COPIES).sum() > 1:
        raise MethodError(
            f"{method} takes weights as copies of rows; give whole numbers, {_MOST_COPIES:,} in all at most"
        )
    if (weights % 1).any():
        raise MethodError(
            f"{method} trains on no loss that sample_weight could weigh; give whole numbers, which repeat rows, or "
            "another method"
        )
    return [record for record, count in zip(records, weights.astype(int), strict=True) for _ in range(count)]


def _check_classes(records: Sequence[Record], weights: np.ndarray) -> None:
    """Raise DataError where a class has no example of a weight above 0."""
    counted = {record.label for record, weight in zip(records, weights, strict=True) if weight > 0}
    lost = next((record.label for record in records if record.label not in counted), None)
    if lost is not None:
        raise DataError(
            f"class {lost!r} has weight 0 in all of sample_weight; weigh an example, or leave the class out"
        )


def example_weights(sample_weight: Any, count: int) -> np.ndarray | None:
    """Return the weights of examples `[N]`, float64; None where all are alike.

    Args:
        sample_weight: `[N]` numbers of 0 or more, or one for all; None for none.
        count: N.

    Raises:
        DataError: there are not as many, one is negative or no number, or all are 0.
    """
    if sample_weight is None:
        return None
    if isinstance(python_value(sample_weight), int | float):
        sample_weight = [sample_weight] * count
    values = [python_value(value) for value in as_labels(sample_weight, "weights")]
    if len(values) != count:
        raise DataError(f"{count} texts but {len(values)} weights in sample_weight; give one for each text")
    for row, value in enumerate(values, start=1):
        if is_missing(value) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise DataError(
                f"row {row}: the weight {str(value)[:40]!r} in sample_weight is no number of 0 or more; fix it"
            )
    weights = np.asarray(values, dtype=float)
    if count and not weights.any():
        raise DataError("all weights in sample_weight are 0; give one above 0")
    return None if (weights == weights[:1]).all() else weights


def _checked(where: str, row: Mapping[Any, Any], fields: Sequence[str] | None) -> dict[str, str]:
    """Return the texts of a row; what no template names is left out where it is no text."""
    named = {str(name): value for name, value in row.items()}
    if len(named) < len(row):
        check_names(where, [str(name) for name in row])
    if fields is None or len(named) == len(fields) == 1:  # one column may have any name
        return {name: text_value(where, name, value) for name, value in named.items()}
    if not set(fields) <= set(named):
        return {name: str(value) for name, value in named.items()}  # the task says which of its fields is not there
    found = {}
    for name, value in named.items():
        try:
            found[name] = text_value(where, name, value)
        except DataError:
            if name in fields:
                raise
    return found


def as_sets(labels: Labels) -> tuple[list[Any], list[str] | None]:
    """Return sets of labels one after another, and the names of the columns of an indicator matrix; None of others.

    Args:
        labels: `[N]` lists, tuples or sets of labels; or `[N, L]` a matrix, dense or sparse, or a DataFrame, of 1 where
            a label is in the set and 0 where it is not, whose labels are the columns' names or numbers.

    Raises:
        DataError: they are neither.
    """
    names = _columns(labels)
    shape: tuple[int, ...] = tuple(getattr(labels, "shape", ()))
    # A column of numbers is a matrix of one class; one of lists, or of strings, is not.
    is_matrix = len(shape) == 2 and (shape[1] > 1 or getattr(getattr(labels, "dtype", None), "kind", "") in "biuf")
    if names is None and not is_matrix:
        return [sorted(own) if isinstance(own, set | frozenset) else own for own in _items(labels, "labels")], None
    matrix = labels.toarray() if hasattr(labels, "toarray") else np.asarray(labels)
    if not np.isin(matrix, (0, 1)).all():
        raise DataError("the labels are a matrix with other values than 0 and 1; give 1 where a label is in the set")
    names = names or [str(number) for number in range(matrix.shape[1])]
    return [[name for name, own in zip(names, row, strict=True) if own] for row in matrix.tolist()], names


def as_answers(labels: Labels, kind: str) -> tuple[list[Any], list[str] | None]:
    """Return right answers of a kind as `as_sets` does; a column of other kinds than sets has one in each row.

    Raises:
        DataError: they are neither.
    """
    names, shape = _columns(labels), tuple(getattr(labels, "shape", ()))
    is_column = len(names) == 1 if names is not None else len(shape) == 2 and shape[1] == 1
    return (as_labels(labels), None) if is_column and kind != "multilabel" else as_sets(labels)


def _rows(texts: Texts) -> list[Any]:
    names = _columns(texts)
    if names is not None:
        return _table_rows(texts, names)
    # scikit-learn's containers are two-dimensional: a column of texts is an [N, 1] array.
    return [
        row[0] if isinstance(row, np.ndarray | list | tuple) and len(row) == 1 else row
        for row in _items(texts, "texts")
    ]


def _columns(table: Any) -> list[str] | None:
    """Return the names of a table's columns: of a DataFrame, or of Arrow; None for what is no table."""
    names = getattr(table, "column_names", None) if hasattr(table, "to_pylist") else getattr(table, "columns", None)
    return None if names is None else [str(name) for name in names]


def _table_rows(table: Any, names: Sequence[str]) -> list[Any]:
    check_names("the table", names)
    if hasattr(table, "to_pylist"):  # of PyArrow
        rows: list[Any] = table.to_pylist()
    elif hasattr(table, "to_dicts"):  # of polars
        rows = table.to_dicts()
    else:
        rows = table.to_dict("records")
    return rows


def _items(values: Any, what: str) -> list[Any]:
    """Return values one after another; a Series is not indexed by its own index, and a generator is used up."""
    if hasattr(values, "to_pylist"):  # an array of PyArrow
        return list(values.to_pylist())
    if isinstance(values, set | frozenset) or not isinstance(values, Iterable):
        raise DataError(f"the {what} are {_article(values)}; give them in a list")
    try:
        return list(values)
    except TypeError as error:  # an array without a dimension
        raise DataError(f"the {what} are {_article(values)} ({error}); give them in a list") from None


def _article(value: Any) -> str:
    name = type(value).__name__
    return "missing (None)" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
