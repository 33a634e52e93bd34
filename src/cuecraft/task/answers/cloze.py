"""Cloze: a word, or some tokens, at the answer slot; any word, or one of some candidates; several may be right.

The facts of LAMA (Petroni et al., EMNLP 2019, arXiv 1909.01066) and the triggers that AutoPrompt finds for a relation
(Shin et al., EMNLP 2020, arXiv 2010.15980, section 5) are such answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from cuecraft.core.errors import DataError, LabelWordError, named
from cuecraft.data.labels import is_missing, label_name, python_value
from cuecraft.data.records import Record, column_value
from cuecraft.task.answers.base import (
    AnswerColumns,
    AnswerOptions,
    AnswerSpace,
    Decision,
    Gold,
    Values,
    check_number,
    softmax,
)
from cuecraft.task.answers.words import Words
from cuecraft.task.example import Example

_ROWS, _SEEN = "options", "seen"
_COMMON = 5  # texts that an answer needs for a group of its own: as many as there are folds


class ClozeOptions(AnswerOptions):
    """What is asked of cloze answers."""

    kind: Literal["cloze"] = "cloze"
    candidates: tuple[str, ...] | None = Field(
        None,
        description="answers to choose among: several, a file with one a line, `seen` for those of the examples, "
        "`options` for those of each row; by default any word",
    )
    tokens: int = Field(4, ge=1, description="of an answer, where any word may be one; a mask holds one")
    top: int = Field(10, ge=1, description="answers that are shown and ranked, where any word may be one")


@dataclass(frozen=True)
class Cloze(AnswerSpace):
    """A word, or some tokens, at the answer slot; a gold has all answers that are right.

    Any word may be the answer, or one of some candidates, or of options that each text brings. A gold is a tuple of
    strings; of options that each text brings, of pairs: the place of an option, and the option.

    Args:
        among: what is chosen among: any word of the `vocabulary`, `candidates`, or each text's own `options`.
        candidates: `[O]` answers to choose among, the same for all texts; () elsewhere.
        seen: answers of the examples that were learnt from or chosen by; no prompt may hold them.
        tokens: of an answer, at most, where any word may be one; a mask holds one.
        top: answers that are shown and ranked where any word may be one, k.

    Raises:
        DataError: fewer than two candidates, or an empty one, or one that is named twice.
    """

    kind: ClassVar[str] = "cloze"
    primary: ClassVar[str] = "precision_at_1"
    options_kind: ClassVar[type[AnswerOptions]] = ClozeOptions
    columns: ClassVar[tuple[str, ...]] = ("answer", "answers", "label")
    brings_options: ClassVar[bool] = True
    hides_pieces: ClassVar[bool] = True

    among: Literal["vocabulary", "candidates", "options"] = "vocabulary"
    candidates: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    tokens: int = 4
    top: int = 10

    def __post_init__(self) -> None:
        check_number("tokens", self.tokens, 1)
        check_number("top", self.top, 1)
        if not all(own.strip() for own in self.seen):
            raise DataError("a seen answer is empty; remove it")
        if self.among != "candidates":
            if self.candidates:
                raise DataError(f"there are candidates, and answers are among the {self.among}; leave one of them out")
            return
        if len(self.candidates) < 2:
            raise DataError(f"{len(self.candidates)} candidates for cloze answers; give two at least")
        if not all(own.strip() for own in self.candidates):
            raise DataError("a candidate for cloze answers is empty; remove it")
        twice = [own for own, count in Counter(self.candidates).items() if count > 1]
        if twice:
            raise DataError(f"candidate {twice[0]!r} is named twice; name it once")

    @classmethod
    def read(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[Any, tuple[str, ...]]:
        """Return the right answers of one row, a string or several in a tuple, and its options, where it brings any."""
        name = columns.label_in(row, cls.columns)
        answers = _strings(where, column_value(where, row, name), f"answer column {name!r}", columns.separator)
        return answers[0] if len(answers) == 1 else answers, cls.read_options(where, row, columns)

    @classmethod
    def read_options(cls, where: str, row: Mapping[str, Any], columns: AnswerColumns) -> tuple[str, ...]:
        """Return the options of one row; () where it brings none."""
        if is_missing(row.get(columns.options)):
            return ()
        return _strings(where, row[columns.options], f"column {columns.options!r}", columns.separator)

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the space that is asked for.

        Raises:
            DataError: too few candidates, a file of them that cannot be read or has none, or a row without options.
            LabelWordError: words were given; an answer is its own word.
        """
        if label_words is not None and not callable(label_words):
            raise LabelWordError(f"cloze answers are their own words; leave {named('task.label_words')} out")
        own = asked if isinstance(asked, ClozeOptions) else ClozeOptions()
        space = cls(tokens=own.tokens, top=own.top).seeing(records)
        if own.candidates is None:
            return space
        if own.candidates == (_ROWS,):
            for number, record in enumerate(records, start=1):
                if len(set(record.options)) < 2:
                    raise DataError(
                        f"{record.place(number)} brings no options to choose among; give each row two at least"
                    )
            return replace(space, among="options")
        listed: Sequence[str] = own.candidates
        if own.candidates == (_SEEN,):
            listed = space.seen
        elif len(own.candidates) == 1:
            listed = _read_candidates(own.candidates[0])
        return replace(space, among="candidates", candidates=tuple(dict.fromkeys(listed)))

    def seeing(self, records: Sequence[Record]) -> Self:
        """Return the space that knows the answers of further examples too: no prompt may hold them."""
        answers = dict.fromkeys([*self.seen, *(answer for record in records for answer in _answers(record))])
        return replace(self, seen=tuple(answers))

    @property
    def is_open(self) -> bool:
        """Whether any word may be the answer."""
        return self.among == "vocabulary"

    @property
    def tuning_score(self) -> str:
        """Precision at 1; of any word that of the first token: words of several tokens are searched for in answers."""
        return f"first_token_{self.primary}" if self.is_open else self.primary

    @property
    def calibrations(self) -> tuple[str, ...]:  # type: ignore[override]
        """None of the open vocabulary, whose probabilities stay the model's own; of own options a scale."""
        return ("none", "contextual", "batch", "fitted") if self.among == "candidates" else ("none", "fitted")

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """The candidates that all texts share, each its own word."""
        return {candidate: (candidate,) for candidate in self.candidates}

    def options_of(self, example: Example) -> Mapping[str, tuple[str, ...]]:
        """Return the candidates, or the options that a text brings; none where any word may be the answer.

        Raises:
            DataError: it brings fewer than two, or one twice.
        """
        if self.among != "options":
            return self.options
        if len(set(example.options)) < max(2, len(example.options)):
            raise DataError(
                f"a text brings the options {', '.join(map(repr, example.options)) or 'none'}; give each text two at "
                "least, none of them twice"
            )
        return {option: (option,) for option in example.options}

    def gold(self, record: Record) -> Gold:
        """Return the right answers of a record that can be given; raises DataError where there are none."""
        answers = _answers(record)
        if self.is_open:
            return answers
        if self.among == "options" and not record.options:  # an example in front of a text is not chosen among
            return tuple((-1, answer) for answer in answers)
        known = self.candidates if self.among == "candidates" else record.options
        right = tuple(answer for answer in answers if answer in known)
        if not right:
            what = "candidates" if self.among == "candidates" else "options of its row"
            shown = f"answer {answers[0]!r}" if len(answers) == 1 else f"none of the answers {', '.join(answers)}"
            raise DataError(
                f"{shown} is {'not ' if len(answers) == 1 else ''}one of the {len(known)} {what}; add it there, or "
                "remove the row"
            )
        return right if self.among == "candidates" else tuple((known.index(answer), answer) for answer in right)

    def label(self, gold: Gold) -> Any:
        """Return the right answer, or all of them in a tuple."""
        answers = self.answers(gold)
        return answers[0] if len(answers) == 1 else answers

    def answers(self, gold: Gold) -> tuple[str, ...]:
        """Return the right answers as strings."""
        assert isinstance(gold, tuple)
        return tuple(own if isinstance(own, str) else own[1] for own in gold)

    def places(self, golds: Sequence[Gold]) -> list[list[int]]:
        """Return the numbers of the right options of each text; its own ones', or the candidates'."""
        numbers = {candidate: number for number, candidate in enumerate(self.candidates)}
        assert all(isinstance(gold, tuple) for gold in golds)
        return [[numbers[own] if isinstance(own, str) else own[0] for own in gold] for gold in golds]  # type: ignore[attr-defined]

    def probabilities(self, values: Values) -> Values:
        """Return the probabilities `[..., O]` of candidates or options."""
        return softmax(values)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the likeliest option of each text."""
        found = []
        for row, example in zip(probabilities.tolist(), examples, strict=True):
            names = self.candidates or tuple(self.options_of(example))
            found.append(self.decided(dict(zip(names, row, strict=False))))
        return found

    def decided(self, shares: Mapping[str, float]) -> Decision:
        """Return the likeliest of some answers, whose probabilities are given; an empty one where none was found."""
        if not shares:
            return Decision("", 0.0, {})
        best = max(shares, key=lambda name: shares[name])
        return Decision(best, shares[best], shares)

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return precision at 1 and at 10, and the mean reciprocal rank; a text with several right answers counts once.

        The rank is that of the first right answer (Petroni et al., section 4.5). Where any word may be the answer, one
        that is not among the `top` has a reciprocal rank of 0.
        """
        ranks = np.array(
            [_rank(own.options, self.answers(gold)) for own, gold in zip(decisions, golds, strict=True)], dtype=float
        )
        found = {name: float(np.mean(ranks <= most)) for name, most in ((self.primary, 1), ("precision_at_10", 10))}
        return {**found, "mean_reciprocal_rank": float(np.mean(1 / ranks))}

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return the first right answer of each text by number; answers of few texts share a group."""
        firsts = [self.answers(gold)[0] for gold in golds]
        counts, least = Counter(firsts), min(_COMMON, max(2, len(golds) // 4))
        common = [answer for answer, count in counts.items() if count >= least]
        rare = len(firsts) - sum(counts[answer] for answer in common)
        numbers = {answer: number for number, answer in enumerate(common)}
        # Too few texts of rare answers join the last group: they could not be both learnt from and checked.
        other = len(common) if rare >= least or not common else len(common) - 1
        return [numbers.get(answer, other) for answer in firsts]

    @property
    def fewest(self) -> int:
        """Examples that are read at least; not two of each candidate, since many are rare."""
        return 16

    @property
    def giveaways(self) -> tuple[str, ...]:
        """The answers of the examples, and the candidates."""
        return tuple(dict.fromkeys((*self.seen, *self.candidates)))

    def written(self, example: Example, gold: Gold) -> str:
        """Return the first right answer."""
        return self.answers(gold)[0]


def _answers(record: Record) -> tuple[str, ...]:
    """Return the right answers of a record."""
    label = record.label
    found = (label,) if isinstance(label, str) else tuple(label or ())
    if not found or not all(isinstance(own, str) and own.strip() for own in found):
        raise DataError(f"{label!r} is no answer; give a string, or several")
    return tuple(dict.fromkeys(found))


def _rank(shares: Mapping[str, float], right: Sequence[str]) -> float:
    """Return the rank of the first right answer, 1 for the likeliest; infinity where none is there.

    Of equally likely answers the one that is named first is likelier, as in `Cloze.decided`.
    """
    ranked = sorted(shares, key=lambda name: -shares[name])
    return next((rank for rank, name in enumerate(ranked, start=1) if name in right), np.inf)


def _strings(where: str, value: Any, what: str, separator: str | None) -> tuple[str, ...]:
    """Return the different strings of a cell: one, a list of them, or several with a separator between them."""
    value = python_value(value)
    if isinstance(value, str) and separator:
        value = [part for part in value.split(separator) if part.strip()]
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if not parts or any(is_missing(own) or (isinstance(own, str) and not own.strip()) for own in parts):
        raise DataError(f"{where}: {what} is empty, or a string in it; give strings, or remove the row")
    return tuple(dict.fromkeys(label_name(where, part, f"{what} is empty").strip() for part in parts))


def _read_candidates(name: str) -> list[str]:
    """Return the candidates of a file, one a line; blank lines are none.

    Raises:
        DataError: it cannot be read, or has none.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DataError(
            f"{name}: candidates cannot be read ({reason}); give a file with one a line, {_SEEN} or {_ROWS}"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{name}: the file has no candidates; write one a line")
    return found
