"""What counts as an answer in the files of a run: asked for, or shown by the training file; and whether others fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from cuecraft.core.errors import CuecraftWarning, MethodError, named
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
    """Return the run with the kind of its answers named.

    Raises:
        MethodError: a search without labels is asked for answers of another kind.
        DataError: as `Asked.in_file`.

    Warns:
        CuecraftWarning: the kind was inferred.
    """
    if spec.is_label_free:
        if spec.task.answers not in (None, "labels"):
            raise MethodError(
                f"{named('unlabeled')} chooses among classes; leave {named('task.answers')} out, or give labels"
            )
        return spec
    asked = asked_of(spec, reading)
    assert not isinstance(asked.answers, AnswerSpace)
    answers = asked.answers.model_dump(mode="json", exclude_none=True)
    task = spec.task.model_copy(update={"answers": answers})
    inferred = asked.inference(spec.data.train)
    if inferred is not None:
        warnings.warn(inferred, CuecraftWarning, stacklevel=2)
    return spec.model_copy(update={"task": task})


def checked_space(
    asked: Asked, label_words: Mapping[str, Sequence[str]] | str | None, train: Sequence[Record]
) -> AnswerSpace:
    """Return what counts as an answer before a model is loaded, which may need no words.

    Raises:
        CuecraftError: the training examples, or the label words, cannot be used.
    """
    if isinstance(label_words, str):
        if asked.kind != "labels":
            raise MethodError(f"label words are searched for labels, and the answers are of kind {asked.kind}")
        label_words = None
    words: Words = label_words or distinct_words
    return asked.space(train, words)
