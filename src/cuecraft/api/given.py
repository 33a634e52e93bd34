"""What an estimator is given: texts with answers of any kind, as records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.data.labels import class_names
from cuecraft.data.texts import Labels, Texts, as_answers, as_labels, as_records, held_out_records, rows_of
from cuecraft.task import AnswerSpace, Verbalizer
from cuecraft.task.answers import AnswerColumns, AnswerOptions
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.labels import LabelOptions
from cuecraft.task.answers.multilabel import MultilabelOptions

#: A kind of answers, a kind with its options, or what counts as an answer.
Answers = str | Mapping[str, Any] | AnswerOptions | AnswerSpace


@dataclass(frozen=True)
class Given:
    """Texts with their right answers.

    Args:
        asked: what is asked of the answers.
        records: one for each text.
        classes: of labels, the classes as the user's data has them, by name, in their order; None of other kinds.
        is_matrix: whether the answers were given as an indicator matrix.
    """

    asked: Asked
    records: list[Record]
    classes: dict[str, Any] | None = None
    is_matrix: bool = False

    @classmethod
    def of(cls, texts: Texts, labels: Labels, answers: Answers | None, fields: tuple[str, ...] | None) -> Given:
        """Return what is given.

        Args:
            texts: `[N]`, as `fit` takes them; where each brings options, mappings with ``choices``.
            labels: `[N]` right answers.
            answers: what is asked of them; None for what texts and answers show.
            fields: that a template names; None where every column of the texts is one.

        Raises:
            DataError, MethodError: they cannot be used.
        """
        texts, labels = (list(own) if isinstance(own, Iterator) else own for own in (texts, labels))  # read twice
        asked = Asked.of(answers, AnswerColumns(), lambda: _shown(texts, labels))
        if asked.kind == "labels":
            labels = as_labels(labels)
            classes = class_names(labels)
            return cls(asked, as_records(texts, labels, fields), {**_named(asked), **classes})
        found, columns = as_answers(labels, asked.kind)
        if columns is not None and isinstance(asked.answers, MultilabelOptions) and asked.answers.classes is None:
            # Each column is a class, one without a label too, so that answers are a matrix of the same columns.
            asked = replace(asked, answers=asked.answers.model_copy(update={"classes": tuple(columns)}))
        return cls(asked, as_records(texts, found, fields, asked.rows), None, columns is not None)

    @classmethod
    def read(cls, records: list[Record], asked: Asked) -> Given:
        """Return what files have."""
        if asked.kind != "labels":
            return cls(asked, records)
        names = sorted({record.label for record in records})
        return cls(asked, records, {**_named(asked), **dict(zip(names, names, strict=True))})

    def held_out(self, dev: tuple[Texts, Labels] | None, fields: tuple[str, ...] | None) -> list[Record] | None:
        """Return records of held-out texts and their answers, which are asked the same; None for none.

        Raises:
            DataError: as `held_out_records`.
        """
        if self.classes is not None:
            return held_out_records(dev, fields)
        if isinstance(dev, tuple | list) and len(dev) == 2:
            dev = (dev[0], as_answers(dev[1], self.asked.kind)[0])
        return held_out_records(dev, fields, self.asked.rows)

    @property
    def answers(self) -> AnswerOptions | AnswerSpace:
        """What is asked of the answers, with the classes of labels."""
        if self.classes is None or isinstance(self.asked.answers, AnswerSpace):
            return self.asked.answers
        return LabelOptions(classes=tuple(self.classes))

    def check_is_labels(self, what: str) -> None:
        """Raise MethodError where answers are of another kind than labels, for which alone something makes sense."""
        if self.classes is None:
            raise MethodError(f"{what} goes with labels; the answers are of kind {self.asked.kind}: leave it out")


def _named(asked: Asked) -> dict[str, Any]:
    """Return the classes that were asked for, in their order."""
    names = asked.answers.classes if isinstance(asked.answers, LabelOptions | Verbalizer) else None
    return {str(name): name for name in names or ()}


def _shown(texts: Texts, labels: Labels) -> list[dict[str, Any]]:
    """Return rows that show of which kind answers are: their own options, and lists of labels."""
    own = [row["choices"] for row in rows_of(texts) if isinstance(row.get("choices"), list | tuple | np.ndarray)]
    if own:
        return [{"choices": own[0], "answer": None}]
    try:
        values = as_labels(labels)
    except DataError:  # a matrix could be one-hot, too
        return []
    lists = [list(value) for value in values if isinstance(value, list | tuple | set | frozenset)]
    # Lists of one label each could be a column of classes.
    are_sets = len(lists) == len(values) and any(len(value) != 1 or isinstance(value[0], Mapping) for value in lists)
    return [{"label": value} for value in lists] if are_sets else []
