"""What counts as an answer in the files of a run: asked for, or shown by the training file; and whether others fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from cuecraft.core.errors import CuecraftWarning, DataError, MethodError, named
from cuecraft.data import Reading, Record
from cuecraft.runs.spec import RunSpec
from cuecraft.task import AnswerSpace
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.words import Words, distinct_words
from cuecraft.task.sections import DataSection, FamilyData


def columns_of(data: DataSection | FamilyData) -> AnswerColumns:
    """Return where the rows of a run have labels and options."""
    return AnswerColumns(data.label_column, data.options_column, data.separator)


def asked_of(spec: RunSpec, reading: Reading) -> Asked:
    """Return what a run asks of its answers; raises as `Asked.in_file`."""
    return Asked.in_file(spec.data.train, spec.task.answers, columns_of(spec.data), reading)


def settled(spec: RunSpec, reading: Reading) -> RunSpec:
    """Return the run with the kind of its answers named; says once what was inferred.

    Raises:
        MethodError: a search without labels is asked for answers of another kind.
        DataError: as `Asked.in_file`.
    """
    if spec.is_label_free:
        if spec.task.answers not in (None, "labels"):
            raise MethodError(
                f"{named('unlabeled')} chooses among classes; leave {named('task.answers')} out, or give labels"
            )
        return spec
    asked = asked_of(spec, reading)
    if asked.line is not None:
        warnings.warn(
            f"{spec.data.train}: {asked.line}; name another with {named('task.answers')}", CuecraftWarning, stacklevel=2
        )
    assert not isinstance(asked.answers, AnswerSpace)
    answers = asked.answers.model_dump(mode="json", exclude_none=True)
    return spec.model_copy(update={"task": spec.task.model_copy(update={"answers": answers})})


def checked_space(
    asked: Asked,
    label_words: Mapping[str, Sequence[str]] | str | None,
    train: tuple[str, Sequence[Record]],
    dev: tuple[str, Sequence[Record]] | None = None,
) -> AnswerSpace:
    """Return what counts as an answer before a model is loaded, which may need no words.

    Args:
        asked: what is asked of answers.
        label_words: by class; None for the classes' names.
        train: the file and its examples.
        dev: the same of those to choose by.

    Raises:
        CuecraftError: the examples, or the label words, cannot be used; one that names a row names the file too.
    """
    if isinstance(label_words, str):
        if asked.kind != "labels":
            raise MethodError(f"label words are searched for labels, and the answers are of kind {asked.kind}")
        label_words = None
    words: Words = label_words or distinct_words
    known = asked.known(train[1], dev[1] if dev else None)
    try:
        return asked.space(known, words)
    except DataError as error:
        if not str(error).startswith("row "):
            raise
        name = dev[0] if dev and _makes_space(asked, train[1], words) else train[0]
        raise DataError(f"{name} {error}") from None


def _makes_space(asked: Asked, records: Sequence[Record], words: Words) -> bool:
    """Return whether some of the examples make a space, so that those which cannot are others."""
    try:
        asked.space(records, words)
    except DataError:
        return False
    return True


def check_answers(space: AnswerSpace, parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise DataError, before anything long is done, where a file has an answer that is none of the space."""
    for name, records in parts.items():
        for row, record in enumerate(records, start=1):
            try:
                space.gold(record)
            except DataError as error:
                raise DataError(f"{name} row {record.row or row}: {error}") from None
