"""The examples that a command was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cuecraft.data import Record, k_shot_split, read_records, subsample
from cuecraft.errors import DataError
from cuecraft.runs.requests import TuneRequest, WordsRequest


def train_and_dev(
    request: TuneRequest | WordsRequest, first: int | None = None
) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train and dev records as asked for, and those that are left over to test on.

    Args:
        request: what was asked for.
        first: learn from so many rows of the training file, in its order, alone; the later ones are left over.
    """
    columns = (request.text_columns, request.label_column, request.reading)
    train = read_records(request.train, *columns)
    dev = read_records(request.dev, *columns) if request.dev else None
    later: list[Record] = []
    if first is not None:
        train, later = train[:first], train[first:]
    if not request.shots:
        return train, dev, later
    split = k_shot_split(train, request.shots, request.seed, with_dev=dev is None)
    return split.train, split.dev if dev is None else dev, split.rest if first is None else later


def read_splits(request: TuneRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records as asked for."""
    train, dev, rest = train_and_dev(request, request.first)
    if request.test:
        return train, dev, read_test(request, request.test)
    if request.first is not None:
        if not rest:
            raise DataError(
                f"--first {request.first} leaves no row of {request.train} to test on; lower it, or give --test"
            )
        return train, dev, _test_rows(request, rest)
    if request.test_size is None:
        return train, dev, []
    if not request.shots:
        raise DataError("--test-size needs --test, or --shots or --first so that rows of TRAIN are left to test on")
    if not rest:
        raise DataError(
            f"--shots {request.shots} leaves no rows of {request.train} to test on; lower it or give --test"
        )
    return train, dev, subsample(rest, request.test_size, request.seed)


def read_test(request: TuneRequest, source: str) -> list[Record]:
    """Return the rows of a test file that were asked for."""
    test = read_records(source, request.text_columns, request.label_column, request.reading)
    return _test_rows(request, test)


def _test_rows(request: TuneRequest, rows: Sequence[Record]) -> list[Record]:
    """Draw test rows; with several seeds the same for all: the spread shall not be that of the test."""
    return subsample(rows, request.test_size, request.seeds[0] if request.seeds else request.seed)


def check_labels(source: str, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> None:
    """Raise DataError, before anything long is done, where other files have a class that the training file has not."""
    known = {record.label for record in train}
    for name, records in others.items():
        for row, record in enumerate(records, start=1):
            if record.label not in known:
                raise DataError(
                    f"{name} row {record.row or row}: label {record.label!r} is not one of the training classes "
                    f"({', '.join(sorted(map(str, known)))}); fix the label or add the class to {source}"
                )


def unzip(records: Sequence[Record]) -> tuple[list[dict[str, str]], list[str | None]]:
    """Return texts, as mappings from field to string, and labels."""
    return [dict(record.fields) for record in records], [record.label for record in records]
