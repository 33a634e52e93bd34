"""What a guard finds in a text, and pieces of texts as they are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

EXCERPT = 80  # characters of a text that are shown at most, before those that are escaped
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # Python calls them printable


class Severity(StrEnum):
    """How much a finding says: one that is `high` flags the text, one that is `low` is only reported."""

    LOW = "low"
    HIGH = "high"


class Kind(StrEnum):
    """Which part of the guard found it."""

    CHARACTERS = "characters"
    ENCODING = "encoding"
    LIMIT = "limit"
    RULE = "rule"
    DETECTOR = "detector"


class Where(StrEnum):
    """In the text as it is read, or in one that was hidden in it: encoded, or in characters that do not show."""

    TEXT = "text"
    HIDDEN = "hidden"


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        kind: which part of the guard found it.
        id: of the rule, the limit, the encoding or the kind of characters; or the detector's name.
        reason: why it is reported, in a sentence.
        excerpt: where it was found; at most `EXCERPT` characters, those that do not show escaped.
        where: in the text, or in one hidden in it.
        severity: whether it flags the text.
    """

    kind: Kind
    id: str
    reason: str
    excerpt: str
    where: Where = Where.TEXT
    severity: Severity = Severity.HIGH

    @property
    def flags(self) -> bool:
        """Whether it flags the text."""
        return self.severity is Severity.HIGH

    def document(self) -> dict[str, str]:
        """Return it ready for JSON."""
        return {
            "kind": self.kind.value,
            "id": self.id,
            "reason": self.reason,
            "excerpt": self.excerpt,
            "where": self.where.value,
            "severity": self.severity.value,
        }


def excerpt(text: str, start: int = 0, end: int | None = None) -> str:
    """Return the part of a text around a place, on one line, with characters that do not show escaped.

    Args:
        text: the whole.
        start: of the place.
        end: of the place; None for the text's end.
    """
    end = len(text) if end is None else end
    left = max(0, start - max(0, EXCERPT - (end - start)) // 4)
    return "".join(_shown(letter) for letter in text[left : left + EXCERPT])


def _shown(letter: str) -> str:
    if letter.isprintable() and not _SELECTORS.match(letter):
        return letter
    return " " if letter.isspace() else f"\\u{{{ord(letter):x}}}"
