"""Labelled spans as data has them: with places in characters, or as tags of words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.core.errors import DataError
from cuecraft.data.labels import is_missing

Span = tuple[str, int, int]  # label, begin and end (exclusive) in characters

#: Columns that have the words of tags as a list, and those that may have the whole text.
WORD_COLUMNS, TEXT_COLUMNS = ("tokens", "words"), ("text", "sentence")
#: B and I of IOB, and what the variants of it have for a word that ends a span or is one by itself.
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_BEGINS, _ENDS = "BSU", "ELSU"


def read_spans(where: str, value: Any, row: Mapping[str, Any]) -> tuple[Span, ...]:
    """Return the spans of one row.

    Args:
        where: names file, row and column, for errors.
        value: a list of spans, each a mapping with `label`, `start` and `end` or a triple of these; or a list of tags
            (`B-x`, `I-x`, `O`), whose words are in a column `tokens` or `words`, or in the text with spaces between; or
            one of both as a string, of JSON or with spaces between.
        row: values by column.

    Raises:
        DataError: it is neither.
    """
    if is_missing(value):
        raise DataError(f"{where} is missing; give a list, empty where the text has no spans")
    given = _listed(where, value)
    if given and all(isinstance(part, str) for part in given):
        return spans_of_tags(where, given, _word_places(where, row))
    return tuple(_span(where, part) for part in given)


def checked_spans(given: Any, text: str) -> tuple[Span, ...]:
    """Return spans in order.

    Raises:
        DataError: they are no spans, one is empty or beyond the text, or two overlap.
    """
    try:
        spans = sorted(((str(label), int(start), int(stop)) for label, start, stop in given), key=lambda own: own[1:])
    except (TypeError, ValueError):
        raise DataError(f"label {given!r} is no list of spans, each with label, begin and end in characters") from None
    last: Span | None = None
    for label, start, stop in spans:
        where = f"the span {start} to {stop} of label {label!r}"
        if start >= stop:
            raise DataError(f"{where} has no characters; its end is the place behind its last one")
        if start < 0 or stop > len(text):
            raise DataError(f"{where} is not within the text, which has {len(text)} characters; fix it")
        if last is not None and start < last[2]:
            raise DataError(f"{where} overlaps the span {last[1]} to {last[2]} of label {last[0]!r}; keep one of them")
        last = (label, start, stop)
    return tuple(spans)


def spans_of_tags(where: str, tags: Sequence[str], words: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """Return the spans of tags of words; one that goes on with no span of its label begins one, as in seqeval.

    Args:
        where: they stand, for errors.
        tags: of each word.
        words: where each word stands in the text.

    Raises:
        DataError: a tag is none, or there are not as many as words.
    """
    if len(tags) != len(words):
        raise DataError(f"{where} has {len(tags)} tags for {len(words)} words; give one for each")
    spans: list[Span] = []
    goes_on = None  # the label that the next word may go on with
    for tag, (start, stop) in zip(tags, words, strict=True):
        found = _TAG.fullmatch(tag)
        if found is None and tag != "O":
            raise DataError(f"{where} has the tag {tag[:40]!r}; give O, or B- or I- and a label")
        if found is None:
            goes_on = None
            continue
        kind, label = found.groups()
        if kind in _BEGINS or label != goes_on:
            spans.append((label, start, stop))
        else:
            spans[-1] = (label, spans[-1][1], stop)
        goes_on = None if kind in _ENDS else label
    return tuple(spans)


def joined_words(value: Any) -> Any:
    """Return a list of words as a text, with spaces between; anything else as it is."""
    return " ".join(value) if not isinstance(value, Mapping) and _are_words(value) else value


def _listed(where: str, value: Any) -> list[Any]:
    """Return a value that is a list, or a string for one."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith(("[", "{")):
            return text.split()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON ({error}); give a list of spans, or tags with spaces") from None
    if isinstance(value, Mapping) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
        raise DataError(f"{where} is {type(value).__name__}, not a list of spans or tags")
    return list(value)


def _span(where: str, part: Any) -> Span:
    if isinstance(part, Mapping):
        missing = [name for name in ("label", "start", "end") if name not in part]
        if missing:
            raise DataError(f"{where}: a span has no {missing[0]!r}; it has label, start and end")
        label, start, stop = (part[name] for name in ("label", "start", "end"))
    elif isinstance(part, Sequence) and not isinstance(part, str) and len(part) == 3:
        label, start, stop = part
    else:
        raise DataError(f"{where}: {part!r} is no span; give label, start and end in characters")
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{where}: a span has the label {label!r}; give a name")
    places = [int(place) if _is_whole(place) else None for place in (start, stop)]
    if None in places:
        raise DataError(f"{where}: a span begins at {start!r} and ends at {stop!r}; give whole numbers of characters")
    return label.strip(), *places  # type: ignore[return-value]


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _are_words(value: Any) -> bool:
    if not hasattr(value, "__iter__") or isinstance(value, str) or getattr(value, "ndim", 1) == 0:
        return False
    return all(isinstance(part, str) for part in value)


def _word_places(where: str, row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return where the words that are tagged stand in the text."""
    text = next((row[name] for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    words = next((row[name] for name in (*WORD_COLUMNS, *TEXT_COLUMNS) if row.get(name) is not None), None)
    if isinstance(words, str):
        return [found.span() for found in re.finditer(r"\S+", words)]
    if words is None or not _are_words(words):
        raise DataError(f"{where} has tags, but no column has their words; give them as a list in 'tokens'")
    text, places, at = " ".join(words) if text is None else text, [], 0
    for word in words:
        start = text.find(word, at)
        if start < 0 or not word.strip():
            raise DataError(f"{where} has tags of the word {word!r}, which is not in the text there")
        at = start + len(word)
        places.append((start, at))
    return places
