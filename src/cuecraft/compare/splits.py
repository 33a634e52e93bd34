"""The examples of a comparison: a train and a dev set for each seed, and one test set for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuecraft.compare.config import CompareConfig
from cuecraft.data import BadRows, Reading, Record, k_shot_split, read_records, subsample
from cuecraft.errors import DataError

_TEST_SEED = 0  # the same test rows whatever the seeds are


@dataclass(frozen=True)
class Split:
    """One seed's own examples."""

    train: list[Record]
    dev: list[Record]


@dataclass(frozen=True)
class Splits:
    """All examples of a comparison.

    Args:
        seeds: each seed's own, in the order asked for.
        test: rows that every method is tested on, with every seed.
        labels: the classes, sorted.
        bad: rows that were left out; None where that was not asked for.
    """

    seeds: dict[int, Split]
    test: list[Record]
    labels: tuple[str, ...]
    bad: BadRows | None = None


def read_splits(config: CompareConfig) -> Splits:
    """Read the examples of a comparison.

    Raises:
        DataError: a folder, file, row or label cannot be used.
    """
    folder = Path(config.task)
    reading = Reading(config.delimiter, BadRows() if config.skip_bad_rows else None)
    if folder.is_dir():
        if config.shots is not None:
            raise DataError(f"{folder}: holds splits of its own, so shots has nothing to draw from; leave it out")
        seeds, test = _from_folder(config, folder, reading)
    else:
        seeds, test = _from_rows(config, reading)
    labels = tuple(sorted({str(record.label) for split in seeds.values() for record in split.train}))
    for seed, split in seeds.items():
        _check_train(f"{config.task}, seed {seed}", split.train, labels)
        _check_known(f"{config.task}, seed {seed}, dev", split.dev, labels)
    _check_known(f"{config.task}, test", test, labels)
    return Splits(seeds, subsample(test, config.test_size, _TEST_SEED), labels, reading.bad)


def _from_folder(config: CompareConfig, folder: Path, reading: Reading) -> tuple[dict[int, Split], list[Record]]:
    missing = [f"seed-{seed}" for seed in config.seeds if not (folder / f"seed-{seed}").is_dir()]
    if missing:
        there = ", ".join(sorted(path.name.removeprefix("seed-") for path in folder.glob("seed-*"))) or "none"
        raise DataError(f"{folder / missing[0]}: no such folder; the seeds there are {there}")

    def read(*parts: str) -> list[Record]:
        return read_records(folder.joinpath(*parts), config.text_columns, config.label_column, reading)

    seeds = {s: Split(read(f"seed-{s}", "train.jsonl"), read(f"seed-{s}", "dev.jsonl")) for s in config.seeds}
    return seeds, read("test.jsonl")


def _from_rows(config: CompareConfig, reading: Reading) -> tuple[dict[int, Split], list[Record]]:
    """Draw each seed's examples; what no seed drew is the test set."""
    if config.shots is None:
        raise DataError(
            f"{config.task}: no folder of splits; give a folder with seed-S/train.jsonl, or --shots K to draw from rows"
        )
    rows = read_records(config.task, config.text_columns, config.label_column, reading)
    seeds = {}
    for seed in config.seeds:
        drawn = k_shot_split(rows, config.shots, seed)
        seeds[seed] = Split(drawn.train, drawn.dev)
    # By text: a copy of a training text would be tested on otherwise.
    taken = {_texts(record) for split in seeds.values() for record in (*split.train, *split.dev)}
    test = [record for record in rows if _texts(record) not in taken]
    if not test:
        raise DataError(f"{config.task}: shots {config.shots} leaves no rows to test on; lower it or name fewer seeds")
    return seeds, test


def _texts(record: Record) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(record.fields.items()))


def _check_train(where: str, records: Sequence[Record], labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise DataError(f"{where}: only one class ({', '.join(labels)}); give examples of at least two")
    absent = [label for label in labels if label not in {record.label for record in records}]
    if absent:
        raise DataError(f"{where}: no training example of class {absent[0]!r}, which other seeds have; add one")


def _check_known(where: str, records: Sequence[Record], labels: Sequence[str]) -> None:
    for row, record in enumerate(records, start=1):
        if record.label not in labels:
            raise DataError(
                f"{where} row {record.row or row}: label {record.label!r} is not one of the training classes "
                f"({', '.join(labels)}); fix the label or add the class to the training data"
            )
