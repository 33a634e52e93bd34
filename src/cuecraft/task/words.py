"""What counts as a word: letters and digits with their marks, whatever the script. No torch here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from cuecraft.task.token_text import CONTINUATION

_ANCHOR = "it"  # behind it tokens are read

_ASCII_WORD = re.compile("[A-Za-z0-9]+(?:'[A-Za-z0-9]+)*")
_CODE_POINTS = 0x32400  # beyond it Unicode has no letters so far
# Scripts that write no spaces between words, as the names of their characters begin.
_UNSPACED = (
    *("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC ITERATION MARK"),
    *("HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)


def words_of(text: str) -> Iterable[str]:
    """Return the words of a text: letters, digits and their marks, with apostrophes inside.

    Where a script writes no spaces, a run of its characters is returned whole: only a tokenizer can cut it.
    """
    # The long character classes of the full pattern make it several times slower.
    pattern = _ASCII_WORD if text.isascii() else _patterns()[0]
    return (found.group() for found in pattern.finditer(text))


def is_word(text: str) -> bool:
    """Return whether a text is one word, as `words_of` finds them."""
    return bool(_patterns()[0].fullmatch(text))


def is_unspaced(word: str) -> bool:
    """Return whether a word is written in a script that puts no spaces between words."""
    return bool(_patterns()[1].fullmatch(word))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    r"""Return what matches a word, and what matches a run of a script without spaces.

    Python's ``\w`` has no combining marks, without which words of Devanagari, say, fall apart.
    """
    unspaced, marks = [], []
    for point in range(_CODE_POINTS):
        kind = unicodedata.category(chr(point))[0]
        if kind not in "LM":
            continue
        if unicodedata.name(chr(point), "").startswith(_UNSPACED):
            unspaced.append(point)
        elif kind == "M":
            marks.append(point)
    run, mark = _ranges(unspaced), _ranges(marks)
    # The joiners U+200C and U+200D stand inside of words of Persian and of Indic scripts.
    part = f"(?:[^\\W_{run}]|[{mark}])(?:[^\\W_{run}]|[{mark}\u200c\u200d])*"
    return re.compile(f"[{run}]+|{part}(?:['\u2019]{part})*"), re.compile(f"[{run}]+")


def _ranges(points: Sequence[int]) -> str:
    """Return sorted code points as ranges of a character class."""
    ranges: list[list[int]] = []
    for point in points:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


@dataclass(frozen=True, eq=False)
class AnswerWords:
    """What a tokenizer can write in the answer slot of a template, where any word may be the answer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        size: tokens that its model knows.
        written: returns the ids of words as they stand in the answer slot (`Renderer.answer_ids`).
    """

    tokenizer: Any
    size: int
    written: Callable[[Sequence[str]], Sequence[tuple[int, ...]]]

    @cached_property
    def whole(self) -> Mapping[int, str]:
        """Tokens that are a whole word there, and the words.

        Such a word the tokenizer writes there as just this token. Pieces of words, punctuation and special tokens are
        none. It knows no dictionary: a stem that it would write as one token too is one.
        """
        texts = self.tokenizer.batch_decode([[n] for n in range(self._count)])
        words = [(n, word) for n, text in enumerate(texts) if is_word(word := text.strip().removeprefix(CONTINUATION))]
        ids = self.written([word for _, word in words])
        return {token: word for (token, word), own in zip(words, ids, strict=True) if own == (token,)}

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Tokens with which a word may begin there, in the order of their ids."""
        begun = (n for n, text in enumerate(self._behind) if self._is_answer(text))
        return tuple(sorted({*self.whole, *begun}))

    @cached_property
    def goes_on(self) -> tuple[int, ...]:
        """Tokens that continue a word, in the order of their ids; parts of a character are among them."""
        return tuple(n for n, text in enumerate(self._behind) if text[:1] == "\ufffd" or is_word(text[:1]))

    def named(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Return the word that each answer's tokens are; an empty text where they are none or are written otherwise."""
        if not answers:
            return []  # a tokenizer takes no empty batch
        texts = [text.removeprefix(self._lead) if self._is_answer(text) else "" for text in self._after(answers)]
        ids = iter(self.written([text for text in texts if text]))
        return [text if text and next(ids) == tuple(own) else "" for text, own in zip(texts, answers, strict=True)]

    def _is_answer(self, text: str) -> bool:
        return text.startswith(self._lead) and is_word(text.removeprefix(self._lead))

    @property
    def _count(self) -> int:
        return min(len(self.tokenizer), self.size)

    @cached_property
    def _behind(self) -> list[str]:
        return self._after([[n] for n in range(self._count)])

    @cached_property
    def _lead(self) -> str:
        """What stands between an answer and the token before it: a space, or nothing."""
        (found,) = self._after([self._anchor])
        return found.removesuffix(_ANCHOR)

    @cached_property
    def _anchor(self) -> tuple[int, ...]:
        return self.written([_ANCHOR])[0]

    def _after(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return what tokens read as behind a word: alone, some tokenizers leave out the space in front."""
        before = self.tokenizer.decode(list(self._anchor))
        texts = self.tokenizer.batch_decode([[*self._anchor, *own] for own in ids], clean_up_tokenization_spaces=False)
        return [text.removeprefix(before) for text in texts]
