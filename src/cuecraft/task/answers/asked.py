"""What is asked of answers: their kind with its options, and where rows of data have labels and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuecraft.core.errors import named
from cuecraft.data.readers import Reading, first_rows
from cuecraft.data.records import Record, RowAnswers
from cuecraft.task.answers import ANSWERS, asked_answers
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace
from cuecraft.task.answers.inferring import LOOKED_AT, SHOWING, inferred_kind
from cuecraft.task.answers.words import Words


@dataclass(frozen=True)
class Asked:
    """What is asked of answers.

    Args:
        answers: the kind with its options, or what counts as an answer.
        columns: where rows have labels and options.
        inferred: what showed the kind, where it was not named.
    """

    answers: AnswerOptions | AnswerSpace
    columns: AnswerColumns = field(default_factory=AnswerColumns)
    inferred: str | None = None

    @classmethod
    def of(
        cls,
        given: str | Mapping[str, Any] | AnswerOptions | AnswerSpace | None,
        columns: AnswerColumns,
        rows: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> Asked:
        """Return what is asked for.

        Args:
            given: a kind, options, or what counts as an answer; None, or options without `kind`, for what rows show.
            columns: where rows have labels and options.
            rows: gives training rows, or the first of them; called where no kind is named.

        Raises:
            MethodError: there is no such kind or option.
            DataError: the rows could be of several kinds.
        """
        if isinstance(given, AnswerOptions | AnswerSpace):
            return cls(given, columns)
        if isinstance(given, str) or (given is not None and "kind" in given):
            return cls(asked_answers(given), columns)
        kind, reason = inferred_kind(rows(), columns)
        return cls(asked_answers({**(given or {}), "kind": kind}), columns, reason)

    @classmethod
    def in_file(
        cls, source: str, answers: str | Mapping[str, Any] | None, columns: AnswerColumns, reading: Reading
    ) -> Asked:
        """Return what is asked of the answers in a training file.

        Args:
            source: the file.
            answers: a kind, or options; None, or options without `kind`, for what the file shows.
            columns: where rows have labels and options.
            reading: the delimiter.

        Raises:
            DataError: the file cannot be read, or its rows could be of several kinds.
            MethodError: there is no such kind or option.
        """
        looked_at = (*SHOWING, columns.options, *([] if columns.label is None else [columns.label]))
        return cls.of(answers, columns, lambda: first_rows(source, LOOKED_AT, looked_at, reading))

    @property
    def kind(self) -> str:
        """The kind of answers."""
        return self.answers.kind

    @property
    def rows(self) -> RowAnswers:
        """How labels and options are read of rows."""
        return ANSWERS[self.kind].in_rows(self.columns)

    def inference(self, source: str) -> str | None:
        """Return the warning that says what the rows of a file were taken for.

        None where the kind was named, or is labels, as by default.
        """
        if self.inferred is None or self.kind == "labels":
            return None
        return (
            f"{source}: answers are taken to be of kind {self.kind}: {self.inferred}; "
            f"name another with {named('task.answers')}"
        )

    def known(self, train: Sequence[Record], dev: Sequence[Record] | None) -> list[Record]:
        """Return the examples that make the space: those to learn from, and the others where these count too."""
        return [*train, *(dev or ())] if ANSWERS[self.kind].knows_dev else list(train)

    def head(self, named: str | None) -> str | None:
        """Return the kind of head that a backbone is loaded with: what the user names, or what the answers need."""
        return named or ("sequence" if ANSWERS[self.kind].at == "words" else None)

    def space(self, records: Sequence[Record], label_words: Words) -> AnswerSpace:
        """Return what counts as an answer; arguments and errors as for `AnswerSpace.of`."""
        if isinstance(self.answers, AnswerSpace):
            return self.answers
        return ANSWERS[self.kind].of(records, self.answers, label_words)
