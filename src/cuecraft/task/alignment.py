"""Words of a text, and the first token of each word, whatever the tokenizer does to the text. No torch here.

A word is a run of letters, digits and marks, or any other character that is no white space. A character of a script
that is written without spaces (Chinese, Japanese, Thai, ...) is a word by itself. Words depend on the text alone, so
two tokenizers read the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from unicodedata import category

#: What is read of a word: the last layer's hidden state at its first token; or the mean of all layers' ones, each at
#: a root mean square of 1, and those of the words before and behind it (`context`).
WordReading = Literal["word", "context"]
Place = tuple[int, int]  # where something begins in a text, and where it ends (exclusive), in characters

#: A word without a token of its own: its characters vanish in the tokenizer, or share one with the word before.
UNREAD = -1
#: A word whose tokens are cut off.
CUT = -2
#: Scripts without spaces between words: Thai to Tibetan, Myanmar, Khmer, kana, and the ideographs.
_SPACELESS = (
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_GAPS = ("Cc", "Cs", "Zl", "Zp", "Zs")


def words_of(text: str) -> list[Place]:
    """Return the words of a text, in order."""
    words: list[list[int]] = []
    is_run = False  # whether a letter that comes next goes on with the last word
    for at, character in enumerate(text):
        kind = category(character)
        if kind in _GAPS or character.isspace():
            is_run = False
        elif kind == "Cf":  # as within a Persian word; it neither begins a word nor ends one
            continue
        elif kind[0] == "M" and words and (is_run or words[-1][1] == at):
            words[-1][1] = at + 1  # an accent, or a vowel sign
        else:
            is_letter = kind[0] in "LMN" and not _is_spaceless(character)
            if is_letter and is_run:
                words[-1][1] = at + 1
            else:
                words.append([at, at + 1])
            is_run = is_letter
    return [(start, stop) for start, stop in words]


def _is_spaceless(character: str) -> bool:
    code = ord(character)
    return code >= _SPACELESS[0][0] and any(first <= code <= last for first, last in _SPACELESS)


def first_tokens(words: Sequence[Place], tokens: Sequence[Place]) -> list[int]:
    """Return the number of the first token of each word, `UNREAD` for a word without one.

    A token serves one word: where it covers the beginning of several, the first has it, and each other word has the
    next token that covers some of it, if there is one.

    Args:
        words: in order, none over another.
        tokens: where each token stands in the text; one of no width stands nowhere.
    """
    placed = [(start, stop, number) for number, (start, stop) in enumerate(tokens) if start < stop]
    found: list[int] = []
    at, last = 0, UNREAD
    for start, stop in words:
        while at < len(placed) and (placed[at][1] <= start or placed[at][2] <= last):
            at += 1
        own = at < len(placed) and placed[at][0] < stop
        found.append(placed[at][2] if own else UNREAD)
        last = placed[at][2] if own else last
    return found


def words_within(words: Sequence[Place], start: int, stop: int) -> range:
    """Return the numbers of the words of which some character lies between two places."""
    own = [number for number, (first, last) in enumerate(words) if first < stop and last > start]
    return range(own[0], own[-1] + 1) if own else range(0)
