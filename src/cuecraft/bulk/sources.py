"""What is read: files, folders, globs and stdin, each with its format and packing."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cuecraft.errors import BulkError

STDIN = "-"


class Format(StrEnum):
    """How rows lie in a file."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    TEXT = "text"


class Packing(StrEnum):
    """How a file is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
    ".txt": Format.TEXT,
    ".log": Format.TEXT,
}
_PACKINGS = {".gz": Packing.GZIP, ".zst": Packing.ZSTD}


@dataclass(frozen=True)
class Source:
    """One input.

    Args:
        number: its place among the inputs.
        path: as ids show it; ``-`` for stdin.
        format: how rows lie in it.
        packing: how it is packed.
        size: its bytes; 0 for stdin.
        changed: when it was last written, in nanoseconds; with the path and the size this tells whether it is the same.
    """

    number: int
    path: str
    format: Format
    packing: Packing
    size: int
    changed: int

    @property
    def is_split(self) -> bool:
        """Whether any part of it can be read by itself: lines, not packed, in a file."""
        is_lines = self.format in (Format.JSONL, Format.TEXT)
        return is_lines and self.packing is Packing.NONE and self.path != STDIN

    def identity(self) -> dict[str, object]:
        """Return what has to be the same for a job to go on."""
        return {"path": self.path, "format": self.format.value, "size": self.size, "changed": self.changed}


def find_sources(words: Sequence[str], forced: Format | None, is_structured: bool) -> list[Source]:
    """Return the inputs that are named: a file, a folder (its files of known endings), a glob or ``-``.

    Args:
        words: names.
        forced: the format of all of them; None to tell it by the ending, other endings being text.
        is_structured: whether fields were asked for, so that stdin is taken for JSONL and not for text.

    Raises:
        BulkError: nothing is named, a name is nothing, or a folder holds nothing that can be read.
    """
    if not words:
        raise BulkError("there is nothing to classify; name files, folders, a glob, or - for stdin")
    if STDIN in words and len(words) > 1:
        raise BulkError("stdin (-) stands alone; classify the files in a job of their own")
    found: dict[str, Source] = {}
    for word in words:
        for path in _files(word):
            if str(path) in found:
                continue
            own = forced
            if own is None and word == STDIN:
                own = Format.JSONL if is_structured else Format.TEXT
            found[str(path)] = _source(len(found), path, own)
    return list(found.values())


def _files(word: str) -> Iterator[str]:
    """Yield the files that a name stands for, in order."""
    path = Path(word)
    if word == STDIN or path.is_file() or path.is_fifo():
        yield word
    elif path.is_dir():
        known = sorted(str(file) for file in path.rglob("*") if _kind(file)[0] is not None and file.is_file())
        if not known:
            raise BulkError(f"{word}: no file here has a known ending ({', '.join(_FORMATS)}); name the files")
        yield from known
    else:
        matches = sorted(match for match in glob.glob(word, recursive=True) if Path(match).is_file())
        if not matches:
            raise BulkError(f"{word}: no such file or folder, and no glob that matches any; check the path")
        yield from matches


def _kind(path: Path) -> tuple[Format | None, Packing]:
    packing = _PACKINGS.get(path.suffix.lower(), Packing.NONE)
    name = path.with_suffix("") if packing is not Packing.NONE else path
    return _FORMATS.get(name.suffix.lower()), packing


def _source(number: int, path: str, forced: Format | None) -> Source:
    if path == STDIN:
        return Source(number, path, forced or Format.TEXT, Packing.NONE, 0, 0)
    told, packing = _kind(Path(path))
    status = Path(path).stat()
    return Source(number, path, forced or told or Format.TEXT, packing, status.st_size, status.st_mtime_ns)
