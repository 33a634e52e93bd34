"""The vocabulary as text: what each token reads as, and which tokens are words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.token_ids import text_ids

_NEIGHBOUR = "it"
_ASCII_WORD = re.compile("[A-Za-z0-9]+(?:'[A-Za-z0-9]+)*")
_CODE_POINTS = 0x32400  # beyond it Unicode has no letters so far
# Scripts that write no spaces between words, as the names of their characters begin.
_UNSPACED = (
    *("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC ITERATION MARK"),
    *("HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer's vocabulary.

    Args:
        tokenizer: the backbone's, for texts.
        size: rows of the input embedding, V.
        texts: each token decoded alone; there may be fewer than V.
    """

    tokenizer: Any
    size: int
    texts: tuple[str, ...]

    @classmethod
    def of(cls, backbone: AnyBackbone) -> Self:
        """Decode a backbone's vocabulary."""
        count = min(len(backbone.tokenizer), backbone.vocab_size)
        texts = backbone.tokenizer.batch_decode([[n] for n in range(count)])
        return cls(backbone.text_tokenizer, backbone.vocab_size, tuple(texts))

    def word(self, token: int) -> str:
        """Return what a token reads as, without the mark or the space that tells where a word begins."""
        return self.texts[token].strip().removeprefix("##")

    def where(self, keep: Callable[[str], bool]) -> Tensor:
        """Return `[V]` bool: tokens that read as something to keep; see `word`."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[: len(self.texts)] = torch.tensor([keep(self.word(n)) for n in range(len(self.texts))], dtype=torch.bool)
        return mask

    def spelled(self, words: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """Yield the ids of each word as it is written in the middle of a sentence.

        With spaces around it; in a script without spaces alone, which is the same there. A word that cannot be split
        from its neighbours has no ids.
        """
        first, both = self._ids([_NEIGHBOUR, f"{_NEIGHBOUR} {_NEIGHBOUR}"])
        before, after = first, both[len(first) :]
        spaced = [not is_unspaced(word) for word in words]
        texts = [f"{_NEIGHBOUR} {word} {_NEIGHBOUR}" if s else word for word, s in zip(words, spaced, strict=True)]
        for ids, s in zip(self._ids(texts), spaced, strict=True):
            if not s:
                yield tuple(n for n in ids if self.texts[n].strip())
            elif ids[: len(before)] == before and ids[len(ids) - len(after) :] == after:
                yield ids[len(before) : len(ids) - len(after)]
            else:
                yield ()

    def _ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return text_ids(self.tokenizer, texts)


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
