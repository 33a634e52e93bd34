"""What a comparison is asked for: a YAML file, flags, the methods that these name, and the examples of each seed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from cuecraft.core.assets import PREFIX, is_asset
from cuecraft.core.errors import CompareError, CuecraftWarning, DataError, MethodError, named, python_word
from cuecraft.core.yaml_files import Place, Settings, explained, keys_of, read_yaml
from cuecraft.data import BadRows, Reading, Record, k_shot_split, read_records, subsample
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.auto import Auto
from cuecraft.methods.problem import Method
from cuecraft.task.answers import ANSWERS, AnswerColumns, with_options
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.labels import LabelOptions
from cuecraft.task.answers.words import distinct_words
from cuecraft.task.chat import ChatChoice
from cuecraft.task.rendering import HeadKind
from cuecraft.task.sections import AnsweringSection, BackboneSection, FamilyData, HeadName, Section, differing

ALL = "all"
UNTUNED, CALIBRATED = "zero-shot", "calibrated"
#: Rows that are a method with options of its own.
NAMED: Mapping[str, tuple[str, Mapping[str, Any]]] = {CALIBRATED: (UNTUNED, {"calibration": "fitted"})}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,59}")
_TEST_SEED = 0  # the same test rows whatever the seeds are


class MethodEntry(Section):
    """One row of the comparison."""

    name: str = Field(description="as shown, and as the row's files are named")
    method: str | None = Field(None, description="the method's name; by default the row's")
    options: dict[str, Any] = Field(default_factory=dict, description="values of the method's options")


class CompareConfig(BackboneSection, AnsweringSection, FamilyData):
    """Settings of `cuecraft compare`: the keys of its YAML file."""

    task: str = Field(
        description="a folder with seed-S/train.jsonl, seed-S/dev.jsonl and test.jsonl; or, with shots, a data file or "
        "demo: data; paths are taken from the current folder"
    )
    seeds: list[int] = Field([13, 21, 42], description="of splits and of methods; each method runs once with each")
    methods: str | list[str | MethodEntry] = Field(
        ALL, description="all, or a list of names and of {name, method, options}"
    )
    model: str = Field("demo:smollm2-135m", description="a demo: model, local folder, GGUF file or Hub name")
    head: HeadName | None = Field(None, description="causal, masked or sequence; by default what the checkpoint has")
    shots: int | None = Field(None, ge=1, description="examples of each class drawn to train on, and as many for dev")
    test_size: int | None = Field(None, ge=1, description="test rows to draw, the same for all; by default all")
    delimiter: str | None = Field(None, description="between the cells of CSV and TSV; by default comma and tab")
    skip_bad_rows: bool = Field(False, description="leave out rows that cannot be used; each is named")
    out: str | None = Field(None, description="folder of the results; by default runs/compare-TASK")

    @field_validator("seeds", mode="before")
    @classmethod
    def _split_seeds(cls, value: Any) -> Any:
        return _words(value) if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: list[int]) -> list[int]:
        if not value:
            raise ValueError("no seeds; give at least one, such as 13,21,42")
        return differing(value)

    @field_validator("methods")
    @classmethod
    def _split_methods(cls, value: str | list[str | MethodEntry]) -> str | list[str | MethodEntry]:
        names = _words(value) if isinstance(value, str) else value
        if not names:
            raise ValueError("no methods; give all, or names")
        return ALL if names == [ALL] else list(names)

    @property
    def task_name(self) -> str:
        """The task's name, made of the folder's, the file's or the data's."""
        if is_asset(self.task):
            return self.task.removeprefix(PREFIX)
        path = Path(self.task)
        return (path.stem if path.suffix else path.resolve().name) or "task"

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.out) if self.out else Path("runs", f"compare-{self.task_name}")


def _words(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def load_config(file: Path | None, flags: Mapping[str, Any], word: Callable[[str], str] = python_word) -> CompareConfig:
    """Return the settings of a YAML file, with flags in place of the keys that they name.

    Args:
        file: the YAML file, if any.
        flags: values by key, and options of answers under `answer_option`; None is no value.
        word: gives what a key is called where it was given so.

    Raises:
        CompareError: the file cannot be read, or a key or value is wrong.
    """
    settings = read_yaml(file, CompareError) if file else Settings()
    for name, value in flags.items():
        if name == "answer_option" and value is not None:  # in addition to those of the file
            answers = with_options(settings.values.get("answers"), value)
            settings = settings.overridden(["answers"], answers, word(name))
        elif value is not None:
            settings = settings.overridden([name], value, word(name))
    if "task" not in settings.values:
        where = f"{file}: " if file else ""
        raise CompareError(f"{where}no task; give {named('data.task')} FOLDER, or task in a {named('config')} file")
    try:
        return CompareConfig.model_validate(settings.values)
    except ValidationError as error:
        raise CompareError(explained(error, settings, _place, _keys)) from None


def _place(loc: Place) -> Place:
    return tuple(part for part in loc if part != "str" and not str(part).startswith(("list[", "MethodEntry")))


def _keys(place: Place) -> Sequence[str]:
    return keys_of(MethodEntry if place else CompareConfig)


@dataclass(frozen=True)
class ComparedMethod:
    """A method that takes part.

    Args:
        name: of its row.
        method: with its options.
        may_refuse: whether it may say that it does not go with the backbone, since it was not chosen by name.
    """

    name: str
    method: Method
    may_refuse: bool = False


def contenders(config: CompareConfig) -> list[ComparedMethod]:
    """Return the methods that a configuration names, in its order.

    Raises:
        MethodError: an unknown method or option, or a name that cannot be used or is used twice.
    """
    return [_as_asked(one, config.choice) for one in _named(config)]


def _as_asked(found: ComparedMethod, chat: ChatChoice | None) -> ComparedMethod:
    """Return a contender that keeps the template where no chat is wanted."""
    method = found.method
    return replace(found, method=method.asked(False, chat)) if isinstance(method, Auto) else found


def _named(config: CompareConfig) -> list[ComparedMethod]:
    if config.methods == ALL:
        names = [UNTUNED, CALIBRATED, *(name for name in METHODS if name != UNTUNED)]
        return [_contender(MethodEntry(name=name), may_refuse=True) for name in names]
    entries = [MethodEntry(name=entry) if isinstance(entry, str) else entry for entry in config.methods]
    found = [_contender(entry) for entry in entries]
    names = [entry.name for entry in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise MethodError(f"methods: {twice!r} is named twice; give each row a name of its own")
    return found


def _contender(entry: MethodEntry, may_refuse: bool = False) -> ComparedMethod:
    known = {**{name: (name, {}) for name in METHODS}, **NAMED}
    if not _FILE_NAME.fullmatch(entry.name):
        raise MethodError(
            f"methods: the name {entry.name!r} cannot name a file; use up to 60 letters, digits, spaces and ._+=-"
        )
    if entry.name in known and (entry.options or entry.method not in (None, entry.name)):
        # A table in which `zero-shot` was calibrated, or `lora` was something else, would mislead.
        raise MethodError(f"methods: {entry.name!r} is the name of a method as it comes; give this row another name")
    kind = entry.method or entry.name
    if kind not in known:
        raise MethodError(f"unknown method {kind!r}; choose all, {', '.join(known)}")
    method, options = known[kind]
    return ComparedMethod(entry.name, make_method(method, {**options, **entry.options}), may_refuse)


def with_references(found: Sequence[ComparedMethod], head: HeadKind) -> list[ComparedMethod]:
    """Return the contenders with the untuned prompt, plain and calibrated, before them where the backbone has words."""
    if head is HeadKind.SEQUENCE:
        return list(found)
    names = {contender.name for contender in found}
    missing = [name for name in (UNTUNED, CALIBRATED) if name not in names]
    return [*(_contender(MethodEntry(name=name)) for name in missing), *found]


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
        labels: the classes, sorted; none where answers are no labels.
        asked: what is asked of the answers.
        bad: rows that were left out; None where that was not asked for.
    """

    seeds: dict[int, Split]
    test: list[Record]
    labels: tuple[str, ...] = ()
    asked: Asked = field(default_factory=lambda: Asked(LabelOptions()))
    bad: BadRows | None = None

    @property
    def known(self) -> list[Record]:
        """The examples that make the answer space: those of the first seed; where dev counts, all of all seeds."""
        parts = [self.asked.known(split.train, split.dev) for split in self.seeds.values()]
        return [record for part in parts for record in part] if ANSWERS[self.asked.kind].knows_dev else parts[0]


def read_splits(config: CompareConfig) -> Splits:
    """Read the examples of a comparison.

    Raises:
        DataError: a folder, file, row or label cannot be used.
    """
    folder = Path(config.task)
    reading = Reading(config.delimiter, BadRows() if config.skip_bad_rows else None)
    first = folder / f"seed-{config.seeds[0]}" / "train.jsonl" if folder.is_dir() else Path(config.task)
    columns = AnswerColumns(config.label_column, config.options_column, config.separator)
    asked = Asked(LabelOptions(), columns)
    if first.exists() or config.answers is not None:
        asked = Asked.in_file(str(first), config.answers, columns, reading)
    if folder.is_dir():
        if config.shots is not None:
            raise DataError(f"{folder}: holds splits of its own, so shots has nothing to draw from; leave it out")
        seeds, test = _from_folder(config, asked, folder, reading)
    else:
        seeds, test = _from_rows(config, asked, reading)
    if asked.kind != "labels":
        found = Splits(seeds, subsample(test, config.test_size, _TEST_SEED), (), asked, reading.bad)
        _check_answers(found)
        inferred = asked.inference(str(first))
        if inferred is not None:
            warnings.warn(inferred, CuecraftWarning, stacklevel=2)
        return found
    labels = tuple(sorted({str(record.label) for split in seeds.values() for record in split.train}))
    for seed, split in seeds.items():
        _check_train(f"{config.task}, seed {seed}", split.train, labels)
        _check_known(split.dev, labels)
    _check_known(test, labels)
    return Splits(seeds, subsample(test, config.test_size, _TEST_SEED), labels, asked, reading.bad)


def _check_answers(splits: Splits) -> None:
    """Raise DataError, before a model is loaded, where a row has an answer that is none of the space."""
    space = splits.asked.space(splits.known, distinct_words)
    for records in (*(part for split in splits.seeds.values() for part in (split.train, split.dev)), splits.test):
        space.golds(records)


def _from_folder(
    config: CompareConfig, asked: Asked, folder: Path, reading: Reading
) -> tuple[dict[int, Split], list[Record]]:
    missing = [f"seed-{seed}" for seed in config.seeds if not (folder / f"seed-{seed}").is_dir()]
    if missing:
        there = ", ".join(sorted(path.name.removeprefix("seed-") for path in folder.glob("seed-*"))) or "none"
        raise DataError(f"{folder / missing[0]}: no such folder; the seeds there are {there}")

    def read(*parts: str) -> list[Record]:
        return read_records(folder.joinpath(*parts), config.text_columns, asked.rows, reading)

    seeds = {s: Split(read(f"seed-{s}", "train.jsonl"), read(f"seed-{s}", "dev.jsonl")) for s in config.seeds}
    return seeds, read("test.jsonl")


def _from_rows(config: CompareConfig, asked: Asked, reading: Reading) -> tuple[dict[int, Split], list[Record]]:
    """Draw each seed's examples; what no seed drew is the test set."""
    if config.shots is None:
        raise DataError(
            f"{config.task}: no folder of splits; give a folder with seed-S/train.jsonl, or {named('data.shots')} K "
            "to draw from rows"
        )
    rows = read_records(config.task, config.text_columns, asked.rows, reading)
    groups, titles = None, None
    if asked.kind != "labels":
        space = asked.space(rows, distinct_words)
        golds = space.golds(rows)
        groups, titles = space.groups(golds), space.group_titles(golds)
    seeds = {}
    for seed in config.seeds:
        drawn = k_shot_split(rows, config.shots, seed, groups=groups, titles=titles)
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


def _check_known(records: Sequence[Record], labels: Sequence[str]) -> None:
    for number, record in enumerate(records, start=1):
        if record.label not in labels:
            raise DataError(
                f"{record.place(number)}: label {record.label!r} is not one of the training classes "
                f"({', '.join(labels)}); fix the label or add the class to the training data"
            )
