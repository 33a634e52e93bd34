"""Filters over the vocabulary: each says which tokens a discrete search may use, and `&` puts two together."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from cuecraft.search.tokens import Tokens, is_unspaced, is_word, words_of
from cuecraft.task import Task

_DISTINCT = 1 << 17  # words of a corpus that are counted before they are credited to tokens: some 20 MB

ASCII = "ascii"
#: Scripts by name, and how the Unicode names of their characters begin.
SCRIPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ASCII: (),
        "arabic": ("ARABIC",),
        "armenian": ("ARMENIAN",),
        "bengali": ("BENGALI",),
        "cyrillic": ("CYRILLIC",),
        "devanagari": ("DEVANAGARI",),
        "georgian": ("GEORGIAN",),
        "greek": ("GREEK",),
        "gujarati": ("GUJARATI",),
        "han": ("CJK", "IDEOGRAPHIC", "FULLWIDTH COMMA", "FULLWIDTH COLON"),
        "hangul": ("HANGUL",),
        "hebrew": ("HEBREW",),
        "hiragana": ("HIRAGANA", "KATAKANA-HIRAGANA"),
        "japanese": ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC"),
        "katakana": ("KATAKANA",),
        "khmer": ("KHMER",),
        "lao": ("LAO",),
        "latin": ("LATIN",),
        "myanmar": ("MYANMAR",),
        "tamil": ("TAMIL",),
        "telugu": ("TELUGU",),
        "thai": ("THAI",),
    }
)


@dataclass(frozen=True, eq=False)
class TokenFilter:
    """Which tokens may be used, and how that came about.

    Args:
        name: of the last filter that was put on.
        mask: `[V]` bool, true for a token that may be used.
        before: the filters before it, each with the tokens that were left by then.
    """

    name: str
    mask: Tensor
    before: tuple[tuple[str, int], ...] = ()

    def __and__(self, other: TokenFilter) -> TokenFilter:
        """Return what both allow; its report goes on from this one's with what each of the other's left."""
        assert not other.before, "put filters on one by one, so that each is counted"
        return TokenFilter(other.name, self.mask & other.mask, (*self.before, (self.name, self.count)))

    @property
    def count(self) -> int:
        """Tokens that are left."""
        return int(self.mask.sum())

    def report(self) -> list[dict[str, Any]]:
        """Return each filter in turn with the tokens that it left, JSON-ready."""
        return [{"filter": name, "tokens": tokens} for name, tokens in (*self.before, (self.name, self.count))]


def everything(tokens: Tokens) -> TokenFilter:
    """Allow the whole vocabulary."""
    return TokenFilter("vocabulary", torch.ones(tokens.size, dtype=torch.bool))


def printable(tokens: Tokens) -> TokenFilter:
    """Allow tokens that show something: no special ones, blanks, control characters or parts of a character."""
    special = set(tokens.tokenizer.all_special_ids) | set(getattr(tokens.tokenizer, "added_tokens_decoder", {}))
    mask = torch.zeros(tokens.size, dtype=torch.bool)
    for token, text in enumerate(tokens.texts):
        shown = text.strip()
        mask[token] = token not in special and bool(shown) and shown.isprintable() and "\ufffd" not in text
    return TokenFilter("printable", mask)


def without_answers(tokens: Tokens, task: Task) -> TokenFilter:
    """Leave out label words, class names and their parts: a prompt that names an answer would leak it.

    Whatever the text said, the model would have read that word. A word that several tokens spell side by side is not
    looked for.
    """
    names = [*task.verbalizer.labels, *(word for words in task.verbalizer.words for word in words)]
    answers = {part.casefold() for name in names for part in (name, *name.split(), *re.split(r"[\W_]+", name)) if part}
    return TokenFilter("no label words", tokens.where(lambda word: word.casefold() not in answers))


def whole_words(tokens: Tokens) -> TokenFilter:
    """Allow tokens that are a whole word: the one token that this tokenizer writes for that word in a sentence.

    That is asked of the tokenizer itself, so it holds for every way of marking where a word begins (a space inside
    the token, ``▁``, ``##`` before all others). It knows no dictionary: a stem such as ` referen` passes where it would
    be written as one token too. A corpus tells words from stems; see `corpus_counts`.
    """
    mask = torch.zeros(tokens.size, dtype=torch.bool)
    words = [(n, word) for n in range(len(tokens.texts)) if is_word(word := tokens.word(n))]
    for (token, _), ids in zip(words, tokens.spelled([word for _, word in words]), strict=True):
        mask[token] = ids == (token,)
    return TokenFilter("whole words", mask)


def script(tokens: Tokens, name: str) -> TokenFilter:
    """Allow tokens of one script (a key of `SCRIPTS`), with digits and signs of ASCII.

    Latin has all its marks, so it holds Vietnamese, Czech and Turkish; `ascii` has none of them.
    """
    prefixes = SCRIPTS[name]
    return TokenFilter(f"script {name}", tokens.where(lambda word: all(_is_of(char, prefixes) for char in word)))


@cache
def _is_of(char: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a character goes with a script; without prefixes, whether it is ASCII."""
    if not prefixes or (char.isascii() and not char.isalpha()):
        return char.isascii()
    return unicodedata.name(char, "").startswith((*prefixes, "COMBINING"))


def no_capitals(tokens: Tokens) -> TokenFilter:
    """Leave out tokens with a capital letter."""
    return TokenFilter("no capitals", tokens.where(lambda word: not any(c.isupper() or c.istitle() for c in word)))


def without_words(tokens: Tokens, words: Iterable[str]) -> TokenFilter:
    """Leave out the tokens that read as one of some words, whatever their case.

    A word of several tokens has no token of its own and is not kept out.
    """
    stopped = {word.casefold() for word in words}
    return TokenFilter("stop words", tokens.where(lambda word: word.casefold() not in stopped))


def frequent(tokens: Tokens, counts: Tensor, least: int, source: str) -> TokenFilter:
    """Allow tokens that a corpus has at least so many times as a word; see `corpus_counts`."""
    return TokenFilter(f"at least {least} times in {source}", counts >= least)


def corpus_counts(tokens: Tokens, texts: Iterable[str]) -> Tensor:
    """Count how often a corpus has a word that this tokenizer writes as just one token, `[V]`.

    Both the word and the token have to be there. Counting tokens alone would let in pieces: with `tuning` in the
    corpus, `ing` is a frequent token, but no word of the domain. Counting words alone would let in every token that
    reads as the word, such as the one without the space before it, which would stick to its neighbour. So each word
    of the corpus counts for the token that the tokenizer writes for it in the middle of a sentence, wherever it
    stood. A word of several tokens counts for none, and words that the tokenizer writes alike (`Film`, `film` of an
    uncased one) count together. Scripts without spaces are cut into words by the tokenizer alone, so there every
    token of a run counts.

    Args:
        tokens: the vocabulary.
        texts: read once, one after another. Memory does not grow with their number: beyond so many distinct words
            the counts are credited to the tokens.
    """
    counts = torch.zeros(tokens.size, dtype=torch.long)
    pending: Counter[str] = Counter()
    for text in texts:
        pending.update(words_of(text))
        if len(pending) > _DISTINCT:
            _credit(tokens, pending, counts)
            pending.clear()
    _credit(tokens, pending, counts)
    return counts


def _credit(tokens: Tokens, found: Counter[str], counts: Tensor) -> None:
    """Add the numbers of some words to those of the tokens that they are written as."""
    words = list(found)
    if not words:
        return
    for word, ids in zip(words, tokens.spelled(words), strict=True):
        if len(ids) == 1 or is_unspaced(word):
            for token in ids:
                counts[token] += found[word]
