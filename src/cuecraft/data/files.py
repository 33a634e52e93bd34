"""Files of rows: formats and packings by ending, their bytes unpacked, and the rows of CSV.

Of a broken CSV row only the line that it begins in is lost: the lines after it are rows again.
"""

from __future__ import annotations

import csv
import errno
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cuecraft.core.errors import DataError

STDIN = "-"
_BOM = b"\xef\xbb\xbf"
#: Packed bytes that are unpacked at once. Gzip makes a thousand times as many of them at most, zstd thirty thousand.
_CHUNKS = {"gzip": 1 << 14, "zstd": 1 << 10}
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_PLAIN = 1 << 20
_FIELD = 2**31 - 1  # characters of a cell


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


FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
    ".txt": Format.TEXT,
    ".log": Format.TEXT,
}
PACKINGS = {".gz": Packing.GZIP, ".zst": Packing.ZSTD}
DELIMITERS = {Format.CSV: ",", Format.TSV: "\t"}

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a drive of Windows has one letter
#: How files begin that are no text in UTF-8: what they are, and what to do.
_FOREIGN = {
    b"\xff\xfe\0\0": ("UTF-32", "save it as UTF-8"),  # before UTF-16, whose mark it begins with
    b"\0\0\xfe\xff": ("UTF-32", "save it as UTF-8"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"\x1f\x8b": ("packed by gzip", "let its name end in .gz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "let its name end in .zst"),
    b"PK\x03\x04": ("a ZIP archive or a spreadsheet", "unpack it, or save it as CSV in UTF-8"),
    b"BZh91AY": ("packed by bzip2", "unpack it, or pack it by gzip"),
    b"\xfd7zXZ": ("packed by xz", "unpack it, or pack it by gzip"),
    b"PAR1\x15": ("Parquet", "let its name end in .parquet"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with: git lfs pull"),
}


def kind_of(path: Path) -> tuple[Format | None, Packing]:
    """Return the format and the packing that a file's ending tells, in capitals or not; no format for other endings."""
    packing = PACKINGS.get(path.suffix.lower(), Packing.NONE)
    name = path.with_suffix("") if packing is not Packing.NONE else path
    return FORMATS.get(name.suffix.lower()), packing


def content_name(path: str) -> str:
    """Return what a file's ending says that is in it, for errors."""
    form, _ = kind_of(Path(path))
    return "text" if form in (None, Format.TEXT) else str(form).upper()


def check_delimiter(delimiter: str | None) -> str | None:
    r"""Return what stands between the cells of a row; `\t` may be written for a tab.

    Raises:
        DataError: it is no single character, or one that CSV needs itself.
    """
    found = "\t" if delimiter == "\\t" else delimiter
    if found is not None and (len(found) != 1 or found in '"\r\n' or not found.isascii()):
        raise DataError(f"the delimiter {delimiter!r} cannot be used; give one character, such as ';' or '\\t'")
    return found


def check_is_path(name: str) -> None:
    """Raise DataError where a name is an address of the web, or of a cloud's storage."""
    if _ADDRESS.match(name):
        raise DataError(f"{name}: is an address, and nothing is downloaded; download the file and give its path")


def check_beginning(path: str, first: bytes) -> None:
    """Raise DataError where the first bytes, unpacked, show that a file is no text in UTF-8."""
    for begin, (kind, remedy) in _FOREIGN.items():
        if first.startswith(begin):
            name = "stdin" if path == STDIN else path
            raise DataError(f"{name}: not readable as UTF-8 {content_name(path)}: it is {kind}; {remedy}")


def without_mark(first: bytes) -> bytes:
    """Return the first bytes of a text without the byte-order mark of UTF-8."""
    return first.removeprefix(_BOM)


def text_of(line: bytes, is_first: bool) -> str:
    """Return a line of text without its ending, and the first of a file without a byte-order mark.

    Raises:
        UnicodeDecodeError: it is no UTF-8.
    """
    return (without_mark(line) if is_first else line).removesuffix(b"\n").removesuffix(b"\r").decode()


class Stream:
    """The unpacked bytes of a file or of stdin, and what broke them off.

    Args:
        path: of the file; ``-`` for stdin.
        packing: how it is packed.
    """

    def __init__(self, path: str, packing: Packing) -> None:
        self._path, self._packing = path, packing
        self.trouble: str | None = None

    def chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield unpacked bytes, each with the number of bytes of the file that they come from.

        Raises:
            DataError: a package for the packing is not installed.
        """
        try:
            if self._path == STDIN:
                yield from _stdin()
                return
            with open(self._path, "rb") as handle:
                yield from _plain(handle) if self._packing is Packing.NONE else self._unpacked(handle)
        except OSError as error:
            self.trouble = f"unreadable ({error.strerror or error})"

    def lines(self) -> Iterator[bytes]:
        """Yield lines with their endings, the first without a byte-order mark.

        Raises:
            DataError: the bytes cannot be read, unpacked, or are no text in UTF-8.
        """
        held, is_first = b"", True
        for chunk, _ in self.chunks():
            *whole, held = (held + chunk).split(b"\n")
            for line in whole:
                yield self._opened(line) + b"\n" if is_first else line + b"\n"
                is_first = False
        if self.trouble is not None:
            name = "stdin" if self._path == STDIN else self._path
            raise DataError(f"{name}: {self.trouble}; check that it is whole and can be read")
        if held:
            yield self._opened(held) if is_first else held

    def _opened(self, first: bytes) -> bytes:
        check_beginning(self._path, first)
        return without_mark(first)

    def _unpacked(self, handle: BinaryIO) -> Iterator[tuple[bytes, int]]:
        new, errors = _unpacker(self._path, self._packing)
        unpacker, is_begun = new(), False
        while packed := handle.read(_CHUNKS[self._packing]):
            read = len(packed)
            while packed:
                try:
                    content = unpacker.decompress(packed)
                except errors:
                    is_packed = is_begun or packed.startswith(_MAGIC[self._packing])
                    self.trouble = f"{'damaged' if is_packed else 'not packed by'} {self._packing}"
                    return
                yield content, read
                read, is_begun, packed = 0, True, b""
                if unpacker.eof:  # files may be joined, and padded with zeros
                    packed = unpacker.unused_data.lstrip(b"\0")
                    unpacker, is_begun = new(), bool(packed)
        if is_begun:
            self.trouble = f"truncated {self._packing}"


def _unpacker(path: str, packing: Packing) -> tuple[Callable[[], Any], type[Exception]]:
    """Return what makes an unpacker, and what it raises where bytes are damaged."""
    if packing is Packing.GZIP:
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: zstd needs a further package: pip install 'cuecraft[bulk]'") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def _stdin() -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of stdin; raises DataError where the process has none."""
    is_closed = sys.stdin is None or sys.stdin.closed
    binary = None if is_closed else getattr(sys.stdin, "buffer", None)
    try:
        if not is_closed and binary is None:  # a notebook or a test has put a stream of characters in its place
            content = sys.stdin.read().encode("utf-8", "surrogateescape")
            yield content, len(content)
        elif binary is not None:
            yield from _plain(binary)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        is_closed = True
    if is_closed:
        raise DataError("stdin: is closed; give texts as arguments or in a file")


def _plain(handle: BinaryIO) -> Iterator[tuple[bytes, int]]:
    while chunk := handle.read(_PLAIN):
        yield chunk, len(chunk)


class CsvRow(NamedTuple):
    """A row, or what is wrong with it.

    Args:
        first: number of its first line, from 1.
        last: number of its last line.
        size: bytes.
        cells: empty for a blank line, and where the row is broken.
        fault: why it is broken; empty elsewhere.
        is_unicode: whether its bytes are UTF-8.
    """

    first: int
    last: int
    size: int
    cells: list[str]
    fault: str = ""
    is_unicode: bool = True


class _Lines:
    """The lines that the reader of CSV takes, several for one row with newlines in it; those of a broken row again."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        # A carriage return alone ends a row, too.
        self._lines = (line for chunk in chunks for line in chunk.splitlines(keepends=True))
        self._again: deque[bytes] = deque()
        self.row: list[bytes] = []
        self.taken = 0
        self.is_unicode = True
        self._broken_until, self._fault = 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.row and self.taken < self._broken_until:
            # A row before this one was open here as well, so this one breaks where that one did. Without this, a file
            # of quotation marks would be read again to its end from each of its lines.
            raise csv.Error(self._fault)
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is None:
            if self.row:
                self._broken_until = sys.maxsize
            raise StopIteration
        self.taken += 1
        self.row.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_unicode = False
            return line.decode("utf-8", "replace")

    def start_row(self) -> None:
        """Forget the row before."""
        self.row, self.is_unicode = [], True

    def go_back(self, fault: str) -> None:
        """Give the lines after the first of a broken row again."""
        self._broken_until, self._fault = max(self._broken_until, self.taken), fault
        self._again.extendleft(reversed(self.row[1:]))
        self.taken -= len(self.row) - 1


def csv_rows(chunks: Iterable[bytes], delimiter: str) -> Iterator[CsvRow]:
    """Yield the rows of CSV, blank lines with no cells among them; their sizes add up to the bytes.

    Args:
        chunks: of bytes that end where a line ends, without a byte-order mark.
        delimiter: between cells.
    """
    csv.field_size_limit(_FIELD)
    lines = _Lines(chunks)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_row()
        first = lines.taken + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            size = len(lines.row[0])
            lines.go_back(str(error))
            yield CsvRow(first, first, size, [], str(error))
        else:
            yield CsvRow(first, lines.taken, sum(map(len, lines.row)), cells, "", lines.is_unicode)
