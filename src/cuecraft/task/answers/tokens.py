"""Tokens: labelled spans of a text. Each word has a tag (B-, I- of a label, or O), and the tags make the spans.

Values `[..., X]` of a text are those of its words one after another, R words of O tags each, X = R * O. Those of a word
that was not read are minus infinity, and the tags around it decide; of one that was cut off too, but for those of the
tag O. Behind a text's own words all are minus infinity.

Scores follow seqeval (Nakayama, 2018; CoNLL-2000): a span counts where label, begin and end are right.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np

from cuecraft.core.errors import CuecraftWarning, DataError, LabelWordError
from cuecraft.data import Record
from cuecraft.data.records import column_value
from cuecraft.task.alignment import Place, WordReading, words_of, words_within
from cuecraft.task.answers.base import AnswerColumns, AnswerOptions, AnswerSpace, Decision, Gold, Values
from cuecraft.task.answers.chains import Chain, Followed, Tags, best_tags, chain_weights, counted
from cuecraft.task.answers.spans import Span, checked_spans, joined_words, read_spans
from cuecraft.task.answers.words import Words
from cuecraft.task.example import Example

_FEW = 4  # texts that a stratum has at least; fewer would leave folds without any


@dataclass(frozen=True)
class LabelledSpans:
    """What is right of a text.

    Args:
        spans: in order, as the user gave them.
        words: the text's words.
        tags: the number of each word's tag; of a span that begins or ends within a word, the whole word's.
    """

    spans: tuple[Span, ...]
    words: tuple[Place, ...]
    tags: tuple[int, ...]

    @property
    def exact(self) -> int:
        """How many spans begin and end where words do, so that tags can give them back."""
        starts, stops = ({place[end] for place in self.words} for end in (0, 1))
        return sum(start in starts and stop in stops for _, start, stop in self.spans)


class TokenOptions(AnswerOptions):
    """What is asked of labels of words."""

    kind: Literal["tokens"] = "tokens"
    labels: tuple[str, ...] | None = None  # in their order; None for those of the examples, sorted
    field: str | None = None  # whose words are labelled; None for the first
    reading: WordReading = "context"  # what is read of a word


@dataclass(frozen=True)
class TokenLabels(AnswerSpace):
    """Labels of spans, and the tags of words that they make: O, and for each label one to begin and one to go on.

    Args:
        labels: `[L]` the spans' labels.
        field: the field whose words are labelled; "" for the only one.
        reading: what is read of a word.
        followed: how often the training texts' tags follow each other; empty where that is not known.

    Raises:
        DataError: no label, an empty one, or one that is named twice.
    """

    kind: ClassVar[str] = "tokens"
    primary: ClassVar[str] = "text_f1"
    calibrations: ClassVar[tuple[str, ...]] = ("none", "fitted")
    options_kind: ClassVar[type[AnswerOptions]] = TokenOptions
    columns: ClassVar[tuple[str, ...]] = ("spans", "tags", "ner_tags", "label")
    at: ClassVar[Literal["answer", "words"]] = "words"

    labels: tuple[str, ...]
    field: str = ""
    followed: Followed = ()
    reading: WordReading = "word"

    def __post_init__(self) -> None:
        if not self.labels:
            raise DataError("no text has a labelled span; give examples with some")
        if len(set(self.labels)) != len(self.labels) or not all(own.strip() for own in self.labels):
            raise DataError(f"a label is empty or named twice among {', '.join(self.labels)}")
        known = range(self.head_rows)
        if any(one not in (-1, *known) or tag not in known or count < 1 for one, tag, count in self.followed):
            raise DataError(
                f"counts below 1, or of tags that are none of the {len(known)} tags; count those of the same labels"
            )

    @classmethod
    def read(
        cls, where: str, row: Mapping[str, Any], columns: AnswerColumns
    ) -> tuple[tuple[Span, ...], tuple[str, ...]]:
        """Return the spans of a row; there are no options of its own. They are given as spans, or as tags of words."""
        column = columns.label_in(row, cls.columns)
        return read_spans(f"{where}: {column!r}", column_value(where, row, column), row), ()

    @classmethod
    def text(cls, value: Any) -> Any:
        """Return a text, given as one or as a list of words, which get spaces between."""
        return joined_words(value)

    @classmethod
    def of(cls, records: Sequence[Record], asked: AnswerOptions, label_words: Words) -> Self:
        """Return the labels of records, sorted, or those asked for.

        Raises:
            DataError: there are none, or a span cannot be one.
            LabelWordError: label words are given.

        Warns:
            CuecraftWarning: how many spans begin or end within a word.
        """
        assert isinstance(asked, TokenOptions)
        if isinstance(label_words, Mapping):
            raise LabelWordError("a class head answers at each word of a text, without label words; give none")
        labels = asked.labels or sorted({str(label) for record in records for label, _, _ in record.label})
        space = cls(tuple(labels), asked.field or next(iter(records[0].fields)))
        golds = [gold for gold in space.golds(records) if isinstance(gold, LabelledSpans)]
        within = sum(len(gold.spans) - gold.exact for gold in golds)
        if within:
            warnings.warn(
                f"{within} of {sum(len(gold.spans) for gold in golds)} spans begin or end within a word; words are "
                "labelled as a whole, so what is learnt of these spans is the whole words, and they cannot come back",
                CuecraftWarning,
                stacklevel=2,
            )
        return replace(space, followed=counted([gold.tags for gold in golds]), reading=asked.reading)

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """None: a class head answers at each word."""
        return {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The spans' labels."""
        return self.labels

    @cached_property
    def weights(self) -> Values:
        """Those `[1 + O, O]` of each tag behind another (`chains.chain_weights`)."""
        return chain_weights(self.head_rows, self.followed)

    @property
    def head_rows(self) -> int:
        """The tags, O = 1 + 2 L."""
        return 1 + 2 * len(self.labels)

    @property
    def fewest(self) -> int:
        """Two of each label."""
        return 2 * len(self.labels)

    @property
    def giveaways(self) -> tuple[str, ...]:
        """None: labels of words are no words of an answer."""
        return ()

    def field_of(self, names: Sequence[str]) -> str:
        """Return the field whose words are labelled, of several by name."""
        if self.field in names:
            return self.field
        if len(names) == 1:
            return names[0]
        raise DataError(
            f"there are texts in {', '.join(map(repr, names))}, and the labels are of words in {self.field!r}; name "
            "the field that spans are of (answers: field)"
        )

    def gold(self, record: Record) -> LabelledSpans:
        """Return the tags of a record's words."""
        text = record.fields[self.field_of(tuple(record.fields))]
        spans = checked_spans(record.label, text)
        for label, _, _ in spans:
            if label not in self.labels:
                raise DataError(
                    f"a span has label {label!r}, which is not one of the task's ({', '.join(self.labels)}); fix it or "
                    "add it to the training data"
                )
        words = words_of(text)
        tags = [0] * len(words)
        for label, start, stop in spans:
            own = words_within(words, start, stop)
            if not own:
                raise DataError(f"the span {start} to {stop} of label {label!r} has no word in it; fix it")
            begin = 1 + 2 * self.labels.index(label)
            free = [word for word in own if not tags[word]]  # of a word that two spans share, the first has it
            for number, word in enumerate(free):
                tags[word] = begin + (number > 0)
        return LabelledSpans(spans, tuple(words), tuple(tags))

    def label(self, gold: Gold) -> tuple[Span, ...]:
        """Return the spans."""
        assert isinstance(gold, LabelledSpans)
        return gold.spans

    def probabilities(self, values: Values) -> Values:
        """Return the probabilities `[..., R * O]` of each word's tags; zeros where a word was not read."""
        table = values.reshape(*values.shape[:-1], -1, self.head_rows)
        greatest = np.maximum(table.max(-1, keepdims=True), np.finfo(float).min)
        shares = np.exp(table - greatest)
        found: Values = shares / np.maximum(shares.sum(-1, keepdims=True), np.finfo(float).tiny)
        return found.reshape(values.shape)

    def decide(self, probabilities: Values, examples: Sequence[Example]) -> list[Decision]:
        """Return the spans of the likeliest tags that can follow each other, given how often they do (`chains`).

        A text's confidence is the probability of all of its tags; a span's, that of its words' tags and of its end.
        """
        table = probabilities.reshape(len(probabilities), -1, self.head_rows)
        total = table.sum(-1, keepdims=True)
        table = table / np.where(total > 0, total, 1.0)  # one that some prompts did not read
        paths = best_tags(table, self.weights)
        return [
            self._decision(example.fields[self.field_of(tuple(example.fields))], own, path)
            for example, own, path in zip(examples, table, paths, strict=True)
        ]

    def _decision(self, text: str, table: Values, path: Tags) -> Decision:
        words, chain = words_of(text), Chain(table, self.weights)
        found, options = [], {}
        for first, last, (label, start, stop) in self.spans(path, words):
            found.append({"label": label, "start": start, "end": stop, "text": text[start:stop]})
            options[f"{label} {start}-{stop}"] = chain.of_span(first, last, path)
        return Decision(found, chain.probability(path), options)

    def spans(self, tags: Sequence[int] | Tags, words: Sequence[Place]) -> list[tuple[int, int, Span]]:
        """Return the spans of tags, each with the numbers of its first and last word.

        Args:
            tags: the number of each word's tag, negative for a word that was not read. Such a word belongs to a span
                    whose words stand on both sides of it, or end where it begins, as where two words share a token.
            words: where each word stands.
        """
        found: list[list[int]] = []  # first word, last word, number of the label
        for word, ((start, _), tag) in enumerate(zip(words, tags, strict=False)):
            if tag < 0:
                if found and found[-1][1] == word - 1 and words[word - 1][1] == start:
                    found[-1][1] = word
            elif tag % 2:
                found.append([word, word, int(tag) // 2])
            elif tag:
                found[-1][1] = word
        return [(first, last, (self.labels[number], words[first][0], words[last][1])) for first, last, number in found]

    def measure(self, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, float]:
        """Return the mean F1 of a text, then F1, precision and recall of all spans, and the mean F1 of the labels."""
        pairs = []
        for own, gold in zip(decisions, golds, strict=True):
            assert isinstance(gold, LabelledSpans)
            pairs.append((frozenset((one["label"], one["start"], one["end"]) for one in own.value), gold.spans))
        counts = {label: [0, 0, 0] for label in self.labels}  # right, found, there
        for found, there in pairs:
            for number, part in enumerate((found & set(there), found, there)):
                for label, _, _ in part:
                    counts[label][number] += 1
        right, found_all, there_all = (sum(own[number] for own in counts.values()) for number in range(3))
        named = [own for own in counts.values() if own[1] or own[2]]
        return {
            self.primary: float(np.mean([span_f1(found, there) for found, there in pairs])),
            "entity_f1": _f1(right, found_all, there_all),
            "entity_precision": right / found_all if found_all else 0.0,
            "entity_recall": right / there_all if there_all else 0.0,
            "macro_f1": float(np.mean([_f1(*own) for own in named])) if named else 0.0,
        }

    def strata(self, golds: Sequence[Gold]) -> list[int]:
        """Return the number of each text's rarest label, from 1; 0 for texts without spans.

        Labels that few texts have are one stratum, and a stratum of few texts is joined with the largest one.
        """
        has = [{label for label, _, _ in gold.spans} if isinstance(gold, LabelledSpans) else set() for gold in golds]
        known = Counter(label for own in has for label in own)
        rarest = [min(own, key=lambda label: (known[label], label)) if own else None for own in has]
        found = [0 if label is None else 1 + self.labels.index(label) for label in rarest]
        sizes, others = Counter(found), 1 + len(self.labels)
        found = [others if number and sizes[number] < _FEW else number for number in found]
        sizes = Counter(found)
        most = max(sizes, key=lambda number: (sizes[number], -number), default=0)
        return [most if sizes[number] < _FEW else number for number in found]


def span_f1(found: frozenset[Span], there: Sequence[Span]) -> float:
    """Return the F1 of a text's spans; 1 where there are none and none were found."""
    return _f1(len(found & set(there)), len(found), len(there)) if found or there else 1.0


def _f1(right: int, found: int, there: int) -> float:
    return 2 * right / (found + there) if found or there else 0.0
