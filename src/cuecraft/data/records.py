"""Labelled texts, what is wrong with a row that gives none, the hash of a list of texts, and samples by seed.

A k-shot split follows LM-BFF (Gao et al., ACL 2021): k examples of each class to train on, as many others as dev set.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cuecraft.core.errors import CuecraftWarning, DataError, named
from cuecraft.core.seeding import numpy_generator

_NAMED = 10  # rows that a warning names


@dataclass(frozen=True)
class Record:
    """One row of data: named text fields and, where known, its answer.

    Args:
        fields: the texts by name.
        label: the answer, a hashable JSON value (lists are tuples): of a class its name. None where it is not known.
        weight: how much it counts in a training, 1 on average; None where all count alike.
        row: the number of the row in its file, from 1, bad rows counted; None for what comes from no file.
        source: the file; None for what comes from none.
        options: that the row brings to choose among.
    """

    fields: Mapping[str, str]
    label: Any = None
    weight: float | None = None
    row: int | None = field(default=None, compare=False)
    options: tuple[str, ...] = ()
    source: str | None = field(default=None, compare=False)

    def place(self, number: int) -> str:
        """Return how errors name the row: its file, and its number there; `number` where it comes from no file."""
        row = f"row {self.row or number}"
        return row if self.source is None else f"{self.source} {row}"


def as_it_is(value: Any) -> Any:
    """Return a value."""
    return value


@dataclass(frozen=True)
class RowAnswers:
    """How labels and options are read of rows of a file or of Python.

    Args:
        labels: columns that may have the label; the first that is there has it.
        options: columns of options, which are no texts.
        read: returns label and options of a row with a label; it is given where the row stands, and its values.
        read_options: returns the options of a row without a label.
        text: returns the value of a text column as a text, where rows may have texts in another form.
    """

    labels: tuple[str, ...]
    options: tuple[str, ...]
    read: Callable[[str, Mapping[str, Any]], tuple[Any, tuple[str, ...]]]
    read_options: Callable[[str, Mapping[str, Any]], tuple[str, ...]]
    text: Callable[[Any], Any] = as_it_is

    @property
    def unlabelled(self) -> RowAnswers:
        """How the options alone are read."""
        return RowAnswers((), self.options, lambda where, row: (None, self.read_options(where, row)), self.read_options)


@dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Args:
        source: the file.
        row: its number among the rows of the file, from 1.
        reason: where it stands, and what is wrong with it.
    """

    source: str
    row: int
    reason: str


@dataclass
class BadRows:
    """The rows that were left out of a run, which asked for that.

    Args:
        rows: in the order in which they were met, each once.
    """

    rows: list[BadRow] = field(default_factory=list)

    def put(self, bad: Sequence[BadRow]) -> None:
        """Take the bad rows of a file, and warn of them; a file that is read again has the same."""
        known = set(self.rows)
        new = [row for row in bad if row not in known]
        self.rows += new
        if new:
            more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
            named = ", ".join(str(row.row) for row in new[:_NAMED])
            warnings.warn(
                f"{new[0].source}: {len(new)} bad row{'s' * (len(new) > 1)} left out (row {named}{more}); "
                f"the first: {new[0].reason}",
                CuecraftWarning,
                stacklevel=3,
            )

    def document(self) -> dict[str, Any]:
        """Return how many there are, and each with its file, number and reason, JSON-ready."""
        rows = [{"source": bad.source, "row": bad.row, "reason": bad.reason} for bad in self.rows]
        return {"count": len(rows), "rows": rows}


def check_nul(where: str, what: str, text: str) -> None:
    """Raise DataError where a text holds NUL characters, as each text of UTF-16 does that is taken for UTF-8."""
    if "\0" in text:
        raise DataError(f"{where}: {what} holds NUL characters; if the file is UTF-16, save it as UTF-8")


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise DataError where two columns have one name, or a name holds NUL; a name that is empty is none."""
    check_nul(where, "the name of a column", "".join(names))
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        what = "two columns are called" if len(twice) == 1 else "columns share the names"
        raise DataError(f"{where}: {what} {', '.join(map(repr, twice))}; rename or remove all but one")


def column_value(where: str, row: Mapping[str, Any], column: str) -> Any:
    """Return a row's value in a column.

    Raises:
        DataError: there is no such column.
    """
    if column in row:
        return row[column]
    (only, *others) = row or [""]
    hint = f"; is another {named('delimiter')} meant?" if not others and any(mark in only for mark in ",;\t|") else ""
    raise DataError(f"{where}: no column {column!r}; the columns are {', '.join(map(repr, row))}{hint}")


def names_twice(line: bytes | str) -> list[str]:
    """Return the names that an object of JSON has more than once.

    Raises:
        ValueError, RecursionError: it cannot be read.
    """
    pairs = json.loads(line, object_pairs_hook=list)
    return [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]


def fingerprint(records: Sequence[Record]) -> str:
    """Return the SHA-256 (hex) of the records: fields, labels, options and their order."""
    digest = hashlib.sha256()
    for record in records:
        weight = [] if record.weight is None else [record.weight]
        options = [record.options] if record.options else []
        line = json.dumps([sorted(record.fields.items()), record.label, *weight, *options], ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


class KShotSplit(NamedTuple):
    """Disjoint samples of one list of records."""

    train: list[Record]
    dev: list[Record]
    rest: list[Record]


def _shuffled_by_class(
    records: Sequence[Record], groups: Sequence[str | None] | None, seed: int, purpose: str
) -> dict[str, list[int]]:
    """Return row numbers of each class in random order; a class's order does not depend on the others."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate([record.label for record in records] if groups is None else groups):
        if name is None:
            raise DataError(f"row {row + 1} has no label; sampling per class needs labels")
        rows[name].append(row)
    return {
        label: [rows[label][i] for i in numpy_generator(seed, f"{purpose}/{label}").permutation(len(rows[label]))]
        for label in sorted(rows)
    }


def _split(records: Sequence[Record], chosen: Sequence[set[int]]) -> list[list[Record]]:
    taken = set().union(*chosen)
    rest = [record for row, record in enumerate(records) if row not in taken]
    return [[records[row] for row in sorted(rows)] for rows in chosen] + [rest]


def k_shot_split(
    records: Sequence[Record],
    shots: int,
    seed: int,
    with_dev: bool = True,
    groups: Sequence[str | None] | None = None,
    titles: Mapping[str, str] | None = None,
) -> KShotSplit:
    """Draw `shots` records of each class to train on and, `with_dev`, as many others of each as a dev set.

    Args:
        records: `[N]`.
        shots: of each class.
        seed: of the choice.
        with_dev: whether a dev set is drawn.
        groups: `[N]` names of the classes (`AnswerSpace.groups`); None for the labels.
        titles: what errors call them, by name (`AnswerSpace.group_titles`).

    Raises:
        DataError: `shots` is not positive, or a class has too few records.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}; ask for at least one example per class")
    needed = shots * (2 if with_dev else 1)
    train: set[int] = set()
    dev: set[int] = set()
    for label, rows in _shuffled_by_class(records, groups, seed, "k-shot").items():
        if len(rows) < needed:
            title = (titles or {}).get(label, f"class {label!r}")
            raise DataError(
                f"{title} has {len(rows)} examples, but {needed} are needed for {shots} shots"
                f"{' to train on and as many for dev' if with_dev else ''}; lower the shots or add data"
            )
        train.update(rows[:shots])
        dev.update(rows[shots:needed])
    return KShotSplit(*_split(records, [train, dev]))


def holdout(
    records: Sequence[Record], fraction: float, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[list[Record], list[Record]]:
    """Hold out a stratified `fraction` of the records: (kept, held out).

    A class with one record keeps it; every other class gives at least one record and keeps at least one.

    Args:
        records: `[N]`.
        fraction: of each class.
        seed: of the choice.
        groups: `[N]` names of the classes (`AnswerSpace.groups`); None for the labels.

    Raises:
        DataError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction held out is {fraction}; give one between 0 and 1, ends excluded")
    held: set[int] = set()
    for rows in _shuffled_by_class(records, groups, seed, "holdout").values():
        if len(rows) > 1:
            count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
            held.update(rows[:count])
    held_out, kept = _split(records, [held])
    return kept, held_out


def subsample(records: Sequence[Record], size: int | None, seed: int) -> list[Record]:
    """Return `size` records drawn without replacement, in their first order; all of them if there are fewer.

    Raises:
        DataError: `size` is not positive.
    """
    if size is None or size >= len(records):
        return list(records)
    if size < 1:
        raise DataError(f"the sample size is {size}; ask for at least one row")
    rows = numpy_generator(seed, "subsample").permutation(len(records))[:size]
    return [records[row] for row in sorted(rows)]
