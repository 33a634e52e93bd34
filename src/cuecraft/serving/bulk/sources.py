"""What is read: files, folders, globs and stdin, each with its format and packing."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cuecraft.core.errors import BulkError
from cuecraft.data.files import DELIMITERS, FORMATS, STDIN, Format, Packing, check_is_path, kind_of


@dataclass(frozen=True)
class Source:
    """One input.

    Args:
        number: its place among the inputs.
        path: of the file; ``-`` for stdin.
        format: how rows lie in it.
        packing: how it is packed.
        size: its bytes; 0 for what is no file.
        changed: when it was last written, in nanoseconds; with the path and the size this shows whether it is the same.
        is_stream: whether it can be read once only: stdin, or a pipe.
        delimiter: between the cells of a row of CSV or TSV, where it is not the usual one.
    """

    number: int
    path: str
    format: Format
    packing: Packing
    size: int
    changed: int
    is_stream: bool = False
    delimiter: str | None = None

    @property
    def cells(self) -> str | None:
        """What stands between the cells of a row; None for a format without."""
        return (self.delimiter or DELIMITERS[self.format]) if self.format in DELIMITERS else None

    @property
    def shown(self) -> str:
        r"""The path as ids and reports show it: no two paths alike, and always text.

        Names of files are bytes, and those that are no UTF-8 are shown as `\xff`. Where that might be meant, or stands
        there by itself, a backslash is shown as two.
        """
        raw = os.fsencode(self.path)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
        return text.replace("\\", "\\\\") if "\\x" in text else text

    @property
    def is_split(self) -> bool:
        """Whether any part of it can be read by itself: lines, not packed, in a file."""
        is_lines = self.format in (Format.JSONL, Format.TEXT)
        return is_lines and self.packing is Packing.NONE and not self.is_stream

    def has_changed(self) -> bool:
        """Return whether the file is not what it was when the job began to read it."""
        if self.is_stream:
            return False
        try:
            status = os.stat(self.path)
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns) != (self.size, self.changed)

    def identity(self) -> dict[str, object]:
        """Return what has to be the same for a job to go on."""
        return {"path": self.path, "format": self.format.value, "size": self.size, "changed": self.changed}


def find_sources(
    words: Sequence[str], forced: Format | None, is_structured: bool, out: Path, delimiter: str | None = None
) -> list[Source]:
    """Return the inputs that are named: a file, a folder (its files of known endings), a glob, a pipe or ``-``.

    Args:
        words: names. A file that is named twice, in whatever way, is one input.
        forced: the format of all of them; None to take it from the ending, other endings being text.
        is_structured: whether fields were asked for; what would be text is then taken for JSONL.
        out: the folder of the job, whose files are no inputs of folders and globs.
        delimiter: between the cells of a row of CSV or TSV; None for the usual one.

    Raises:
        DataError: a name is an address.
        BulkError: nothing is named, a name is nothing or cannot be looked at, or a folder holds nothing that can be
            read.
    """
    if not words:
        raise BulkError("there is nothing to classify; name files, folders, a glob, or - for stdin")
    unnamed = Format.JSONL if is_structured else Format.TEXT
    found: dict[str, Source] = {}
    for word in words:
        check_is_path(word)
        try:
            for path in _files(word, os.path.realpath(out)):
                source = replace(_source(len(found), path, forced, unnamed), delimiter=delimiter)
                found.setdefault(path if source.is_stream else os.path.realpath(path), source)
        except OSError as error:
            raise BulkError(
                f"{word[:100]}: cannot be read ({error.strerror or error}); name files or folders"
            ) from None
    for source in found.values():
        if source.is_stream and len(found) > 1:
            raise BulkError(f"{source.path}: what can be read once stands alone; classify the files in another job")
        if source.is_stream and source.format is Format.PARQUET:
            raise BulkError(f"{source.path}: Parquet is read from its end; write it to a file first")
    return list(found.values())


def _files(word: str, out: str) -> Iterator[str]:
    """Yield the files that a name stands for, in order."""
    path = Path(word)
    if word == STDIN or path.is_file() or path.is_fifo():
        yield word
        return
    if path.is_dir():
        names = [str(file) for file in path.rglob("*") if kind_of(file)[0] is not None]
        lacking = f"{word}: no file here has a known ending ({', '.join(FORMATS)}); name the files"
    else:
        names = glob.glob(word, recursive=True)
        lacking = f"{word}: no such file or folder, and no glob that matches any; check the path"
    found = sorted(name for name in names if Path(name).is_file() and not _is_within(name, out))
    if not found:
        raise BulkError(lacking)
    yield from found


def _is_within(name: str, folder: str) -> bool:
    return os.path.realpath(name).startswith(os.path.join(folder, ""))


def _source(number: int, path: str, forced: Format | None, unnamed: Format) -> Source:
    if path == STDIN:
        return Source(number, path, forced or unnamed, Packing.NONE, 0, 0, is_stream=True)
    told, packing = kind_of(Path(path))
    form = forced or (unnamed if told is None or told is Format.TEXT else told)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return Source(number, path, form, packing, 0, 0, is_stream=True)
    return Source(number, path, form, packing, status.st_size, status.st_mtime_ns)
