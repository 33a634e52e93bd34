"""Which tokens a discrete search may use: the filters that are always on, and those that the user asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.data import stream_texts
from cuecraft.errors import DataError, MethodError
from cuecraft.options import Options
from cuecraft.search.filters import (
    SCRIPTS,
    TokenFilter,
    corpus_counts,
    everything,
    frequent,
    no_capitals,
    printable,
    script,
    whole_words,
    without_answers,
    without_words,
)
from cuecraft.search.tokens import Tokens
from cuecraft.task import Task

_LEAST = 2  # a search has to choose between words
_FILE = "@"


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
