"""Which tokens a discrete search may use: the vocabulary as text, filters over it, and the user's choice of filters.

A filter says which tokens may be used; `&` puts two together.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.core.errors import DataError, MethodError
from cuecraft.core.options import Options
from cuecraft.data import stream_texts
from cuecraft.task import Task
from cuecraft.task.token_text import text_ids
from cuecraft.task.words import is_unspaced, is_word, words_of

_NEIGHBOUR = "it"
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
_LEAST = 2  # a search has to choose between words
_FILE = "@"


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
    looked for, unless the answer space says so (`AnswerSpace.hides_pieces`): then none of these tokens is left.
    """
    names = task.answers.giveaways
    answers = {part.casefold() for name in names for part in (name, *name.split(), *re.split(r"[\W_]+", name)) if part}
    mask = tokens.where(lambda word: word.casefold() not in answers)
    if task.answers.hides_pieces and names:
        mask[sorted({token for ids in tokens.spelled(names) for token in ids})] = False
    return TokenFilter("no label words", mask)


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


class VocabularyOptions(Options):
    """Filters of the vocabulary, over those that are always on; they compose.

    A run's identity has the corpus by its content: `corpus_sha256` is found when the options are made and recorded
    with them, and words of a stop list's file are recorded themselves.
    """

    whole_words: bool = Field(False, description="only tokens that are a whole word, none that continue one")
    script: str | None = Field(None, description=f"only tokens of one script: {', '.join(SCRIPTS)}")
    lowercase: bool = Field(False, description="no tokens with a capital letter")
    stop_words: tuple[str, ...] = Field((), description=f"words to leave out; {_FILE}FILE for a file with one a line")
    corpus: Path | None = Field(None, description="only words of this file: .csv, .tsv, .jsonl, .parquet or .txt")
    corpus_column: str = Field("text", description="column of text of the corpus")
    min_count: int = Field(3, ge=1, description="times that the corpus has a word, at least")
    corpus_sha256: str | None = Field(
        None, validate_default=True, description="hash of the corpus; found, or checked where it is given"
    )

    @field_validator("script")
    @classmethod
    def _check_script(cls, value: str | None) -> str | None:
        if value is not None and value not in SCRIPTS:
            raise MethodError(f"script {value!r} is unknown; choose {', '.join(SCRIPTS)}")
        return value

    @field_validator("stop_words")
    @classmethod
    def _read_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        words: list[str] = []
        for word in value:
            words += (text.strip() for text in stream_texts(_text_file(word))) if word.startswith(_FILE) else [word]
        return tuple(dict.fromkeys(words))

    @field_validator("corpus_sha256")
    @classmethod
    def _pin(cls, value: str | None, info: ValidationInfo) -> str | None:
        corpus: Path | None = info.data.get("corpus")
        if corpus is None:
            return value
        try:
            with corpus.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{corpus}: the corpus cannot be read ({error.strerror}); check the path") from error
        if value not in (None, found):
            raise DataError(f"{corpus} is not the corpus of the hash that was given; leave corpus_sha256 out to use it")
        return found

    @model_validator(mode="after")
    def _check_read(self) -> Self:
        if self.corpus is None:
            kind = type(self)
            for name in ("corpus_column", "min_count", "corpus_sha256"):
                if getattr(self, name) != kind.model_fields[name].default:
                    raise MethodError(f"vocabulary: {name} says how to read a corpus, and none is given; give corpus")
        return self

    @property
    def is_chosen(self) -> bool:
        """Whether any filter was asked for."""
        return bool(self.whole_words or self.script or self.lowercase or self.stop_words or self.corpus)


_OPEN = VocabularyOptions()


def _text_file(word: str) -> Path:
    path = Path(word.removeprefix(_FILE))
    if path.suffix != ".txt":
        raise MethodError(f"stop list {path} is no .txt file; give one with a word a line")
    return path


def allowed_tokens(backbone: AnyBackbone, task: Task) -> Tensor:
    """Return `[V]` bool: printable tokens that are neither special, nor a label word or class name, nor part of one."""
    return make_vocabulary(backbone, task).mask


def make_vocabulary(backbone: AnyBackbone, task: Task, options: VocabularyOptions = _OPEN) -> TokenFilter:
    """Return the tokens that a search may use, and what each filter left.

    Raises:
        MethodError: fewer tokens are left than a search can choose from.
        DataError: the corpus cannot be read.
    """
    tokens = Tokens.of(backbone)
    found = everything(tokens) & printable(tokens) & without_answers(tokens, task)
    if options.whole_words:
        found &= whole_words(tokens)
    if options.script:
        found &= script(tokens, options.script)
    if options.lowercase:
        found &= no_capitals(tokens)
    if options.stop_words:
        found &= without_words(tokens, options.stop_words)
    if options.corpus:
        counts = corpus_counts(tokens, stream_texts(options.corpus, options.corpus_column))
        found &= frequent(tokens, counts, options.min_count, options.corpus.name)
    if found.count < _LEAST:
        raise MethodError(
            f"the filters of the vocabulary leave {found.count} tokens, and a search needs {_LEAST} at least; "
            f"loosen one of them ({described(found)})"
        )
    return found


def described(vocabulary: TokenFilter) -> str:
    """Return the tokens that each filter left, in one line."""
    return ", ".join(f"{row['filter']} {row['tokens']}" for row in vocabulary.report())
