"""What of a row is classified (one field, several, or a template over some), and which texts count as one.

Texts count as one where they are the same, or for logs the same but for numbers, ids, addresses, paths and times. A
mask is a function of a text alone, so it is the same in any order, process or machine, and two texts that differ in a
word are never one. Miners that learn templates from a stream (as Drain) merge more, and both is lost with them.
Repetitions are bounded, so that no word takes longer than its length asks for.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from cuecraft.core.errors import BulkError, DataError, named
from cuecraft.task.answers import ANSWERS, AnswerColumns

SEPARATOR = "\0"  # between the fields of one text; a text that holds it is not classified anyway

MISSING, NOT_TEXT, NOT_UNICODE = "missing field", "not text", "invalid UTF-8"
EMPTY, NUL = "empty", "NUL"
NO_CHOICE = "no options that can be chosen among"


class UnusableError(Exception):
    """A row that cannot be classified, and why."""


@dataclass(frozen=True)
class Wanted:
    """What of a row is classified, and what of it is kept.

    Args:
        columns: that are read; None for a line as it is.
        pieces: what a text is put together of: literal words and columns in turn, words first and last; none where each
            column is a field of its own.
        keep: fields that are written next to the answer.
        longest: bytes of a row, at most.
        is_masked: whether texts that differ in numbers, ids, addresses, paths and times alone are one.
        is_joined: whether equal texts are one.
        candidates: rows of a block that an audit may ask about.
        options: the column of the options that a row brings, and the kind of answers that reads them; None for none.
    """

    columns: tuple[str, ...]
    pieces: tuple[str, ...]
    keep: tuple[str, ...]
    longest: int
    is_masked: bool
    is_joined: bool
    candidates: int
    options: tuple[str, str] | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, *self.keep, *(self.options or ())[:1])

    @property
    def sample(self) -> dict[str, Any]:
        """A text as `record` returns it."""
        more = {} if self.options is None else {self.options[0]: ("a", "b")}
        return dict.fromkeys(self.fields, "a") | more

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of a text's fields."""
        return ("text",) if self.pieces or not self.columns else self.columns

    def record(self, text: str) -> dict[str, Any]:
        """Return the fields of a text, and the options that it brings."""
        if self.options is None:
            return dict(zip(self.fields, text.split(SEPARATOR), strict=True))
        *parts, options = text.split(SEPARATOR)
        return dict(zip(self.fields, parts, strict=True)) | {self.options[0]: tuple(json.loads(options))}

    def taker(self) -> Callable[[Mapping[str, Any]], str]:
        """Return what makes the text of a row's columns; it raises UnusableError where it cannot.

        Options that the row brings stand behind it as JSON.
        """
        take = self._fields_taker()
        if self.options is None:
            return take
        column, kind = self.options
        read = ANSWERS[kind].read_options

        def taken(row: Mapping[str, Any]) -> str:
            try:
                options = read("", row, AnswerColumns(options=column))
            except DataError:
                raise UnusableError(NO_CHOICE) from None
            return SEPARATOR.join([take(row), json.dumps(options, ensure_ascii=False)])

        return taken

    def _fields_taker(self) -> Callable[[Mapping[str, Any]], str]:
        if self.pieces:
            return lambda row: _composed(row, self.pieces)
        if len(self.columns) == 1:
            return lambda row, name=self.columns[0]: _text(row, name)  # type: ignore[misc]
        return lambda row: SEPARATOR.join([_text(row, name) for name in self.columns])


class OutputColumns(NamedTuple):
    """What a prompt's columns are called in the answers: label, its probability, and whether the text was cut.

    Where answers are no labels: the value, its confidence, and `more`: the options, and the interval of a number.
    """

    label: str
    probability: str
    truncated: str
    more: tuple[str, ...] = ()


_OF_LABELS = OutputColumns("label", "probability", "truncated")
_OF_OTHERS = OutputColumns("value", "confidence", "truncated", ("options", "interval"))


def answer_columns(prompts: Mapping[str, bool]) -> list[OutputColumns]:
    """Return the columns of each prompt `[P]`, given for each by name whether it answers with labels."""
    found = []
    for name, has_labels in prompts.items():
        begin, own = f"{name}." if len(prompts) > 1 else "", _OF_LABELS if has_labels else _OF_OTHERS
        more = tuple(begin + part for part in own.more)
        found.append(OutputColumns(begin + own.label, begin + own.probability, begin + own.truncated, more))
    return found


def kept_columns(prompts: Mapping[str, bool], keep: Sequence[str]) -> list[str]:
    """Return what fields that are kept are called in the answers; one that an answer has already is ``input.NAME``.

    Args:
        prompts: as for `answer_columns`.
        keep: the fields.

    Raises:
        BulkError: two columns would have one name, or a name is not UTF-8.
    """
    for name in keep:
        if not is_unicode(name):
            raise BulkError(f"{named('keep')}: {name!r} is not UTF-8, and the answers are; leave it out")
    taken = {"id", *(name for own in answer_columns(prompts) for name in (*own[:-1], *own.more))}
    names = [f"input.{name}" if name in taken else name for name in keep]
    twice = [name for name in names if names.count(name) > 1 or name in taken]
    if twice:
        raise BulkError(f"{named('keep')}: two columns would be called {twice[0]!r}; leave one out")
    return names


def parsed_template(source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the fields of a template such as ``"{level} {message}"``, and its pieces as `Wanted` has them.

    Raises:
        BulkError: it does not parse, or has no field.
    """
    from cuecraft.task.template import FIELD_NAME

    pieces = [""]
    try:
        for literal, name, spec, conversion in string.Formatter().parse(source):
            pieces[-1] += literal
            if name is None:
                continue
            if spec or conversion or not FIELD_NAME.fullmatch(name):
                raise ValueError(f"{{{name}}} is no field")
            pieces += [name, ""]
    except ValueError as error:
        raise BulkError(
            f"template {source!r} does not parse ({error}); write for instance '{{level}} {{message}}'"
        ) from None
    if len(pieces) < 2:
        raise BulkError(f"template {source!r} has no field; write for instance '{{level}} {{message}}'")
    return tuple(dict.fromkeys(pieces[1::2])), tuple(pieces)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8; one with half a character cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str) -> None:
    """Raise UnusableError where a text is empty or has a NUL."""
    if not text or text.isspace():
        raise UnusableError(EMPTY)
    if "\0" in text:
        raise UnusableError(NUL)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value.__class__ is not str:
        if value is None:
            raise UnusableError(MISSING)
        raise UnusableError(NOT_TEXT)
    check_text(value)
    return value


def _composed(row: Mapping[str, Any], pieces: Sequence[str]) -> str:
    parts = [pieces[0]]
    for name, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        value = row.get(name)
        if value is None:
            raise UnusableError(MISSING)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UnusableError(NOT_TEXT)
        parts += [str(value), literal]
    text = "".join(parts)
    check_text(text)
    return text


_MOST, _LONG = 100_000, 200  # words that are remembered with their masks, and characters of one

_HEX = "0-9a-fA-F"
_KINDS = {
    "TIME": r"\d{4}-\d\d-\d\d(?:[T_]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r"|\d\d:\d\d:\d\d(?:[.,]\d+)?Z?",
    "ID": rf"[{_HEX}]{{8}}(?:-[{_HEX}]{{4}}){{3}}-[{_HEX}]{{12}}",
    "IP": r"\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"
    rf"|(?=[a-fA-F:]{{0,39}}\d)(?=[{_HEX}:]{{0,39}}::?[{_HEX}]{{0,4}}:)[{_HEX}]{{1,4}}(?:::?[{_HEX}]{{1,4}}){{2,7}}",
    "HEX": rf"0[xX][{_HEX}]+|(?=[a-fA-F]*\d)[{_HEX}]{{6,}}",
    "MAIL": r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "NUM": r"\d+(?:[.,]\d+)*",
}
_ALTERNATIVES = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _KINDS.items())
#: What stands by itself, then paths and addresses of the web, then numbers within words.
_MASK = re.compile(
    rf"(?P<URL>\b[a-z][a-z0-9+.-]{{0,20}}://[^\s\"'<>]+)|(?<![A-Za-z0-9])(?:{_ALTERNATIVES})(?![A-Za-z0-9])"
    r"|(?P<PATH>(?<![\w/.])~?/[\w.\-]+(?:/[\w.\-]+)+/?)|(?P<PART>\d+)"
)
_MASKS = {name: f"<{name}>" for name in (*_KINDS, "URL", "PATH")} | {"PART": "<NUM>"}


class _Words(dict[str, str]):
    """The masks of words that were met lately."""

    def __missing__(self, word: str) -> str:
        found = _MASK.sub(lambda match: _MASKS[match.lastgroup or ""], word)
        if len(word) <= _LONG:
            if len(self) >= _MOST:
                self.clear()
            self[word] = found
        return found


_words = _Words()


def masked(text: str) -> str:
    """Return a text with its numbers, ids, addresses, paths and times written as signs, word by word."""
    return " ".join([word if word.isalpha() else _words[word] for word in text.split(" ")])


def digest(text: str) -> bytes:
    """Return 16 bytes that stand for a text."""
    return blake2b(text.encode(), digest_size=16).digest()
