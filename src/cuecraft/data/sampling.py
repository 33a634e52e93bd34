"""Balanced k-shot samples and stratified hold-outs, by seed.

The k-shot split follows the protocol of LM-BFF (Gao et al., ACL 2021): k examples of each class to train on, and
as many others of each class as a dev set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from cuecraft.data.records import Record
from cuecraft.errors import DataError
from cuecraft.seeding import numpy_generator


class KShotSplit(NamedTuple):
    """Disjoint samples of one list of records."""

    train: list[Record]
    dev: list[Record]
    rest: list[Record]


def _shuffled_by_class(records: Sequence[Record], seed: int, purpose: str) -> dict[str, list[int]]:
    """Return row numbers of each class in random order; a class's order does not depend on the others."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        if record.label is None:
            raise DataError(f"row {row + 1} has no label; sampling per class needs labels")
        rows[record.label].append(row)
    return {
        label: [rows[label][i] for i in numpy_generator(seed, f"{purpose}/{label}").permutation(len(rows[label]))]
        for label in sorted(rows)
    }


def _split(records: Sequence[Record], chosen: Sequence[set[int]]) -> list[list[Record]]:
    taken = set().union(*chosen)
    rest = [record for row, record in enumerate(records) if row not in taken]
    return [[records[row] for row in sorted(rows)] for rows in chosen] + [rest]


def k_shot_split(records: Sequence[Record], shots: int, seed: int, with_dev: bool = True) -> KShotSplit:
    """Draw `shots` records of each class to train on and, `with_dev`, as many others of each as a dev set.

    Raises:
        DataError: `shots` is not positive, or a class has too few records.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}; ask for at least one example per class")
    needed = shots * (2 if with_dev else 1)
    train: set[int] = set()
    dev: set[int] = set()
    for label, rows in _shuffled_by_class(records, seed, "k-shot").items():
        if len(rows) < needed:
            raise DataError(
                f"class {label!r} has {len(rows)} examples, but {needed} are needed for {shots} shots"
                f"{' to train on and as many for dev' if with_dev else ''}; lower the shots or add data"
            )
        train.update(rows[:shots])
        dev.update(rows[shots:needed])
    return KShotSplit(*_split(records, [train, dev]))


def holdout(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Hold out a stratified `fraction` of the records: (kept, held out).

    A class with one record keeps it; every other class gives at least one record and keeps at least one.

    Raises:
        DataError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction held out is {fraction}; give one between 0 and 1, ends excluded")
    held: set[int] = set()
    for rows in _shuffled_by_class(records, seed, "holdout").values():
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
