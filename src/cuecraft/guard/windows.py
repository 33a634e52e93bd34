"""Overlapping windows of long texts, so that an attack in the middle is read whole by one of them."""

from __future__ import annotations

import re

WORDS = 160  # of a window; about 250 tokens of English, which the smallest classifiers still take whole
OVERLAP = 32  # words that a window shares with the next
MOST = 64  # windows of one text; a longer text has wider ones
_WORD = re.compile(r"\S{1,24}")  # a longer run, as in scripts without spaces, counts as several words


def windows(text: str, words: int = WORDS, overlap: int = OVERLAP, most: int = MOST) -> list[str]:
    """Return the windows of a text, in order; every word is in one, and a text without words has none.

    Args:
        text: the whole.
        words: of a window; more where `most` windows would not do.
        overlap: words that a window shares with the next; fewer than `words`.
        most: windows at most.
    """
    places = [match.span() for match in _WORD.finditer(text)]
    if len(places) <= words:
        return [text] if places else []
    step = max(words - overlap, -(-(len(places) - overlap) // most))
    starts = range(0, len(places) - overlap, step)
    return [text[places[start][0] : places[min(start + step + overlap, len(places)) - 1][1]] for start in starts]
