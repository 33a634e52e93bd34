"""Bytes into pieces that end where a row ends, in bounded memory whatever the bytes are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

CHUNK = 1 << 16  # bytes that are read at once where it is only looked for the end of a line

TOO_LONG, SHRUNK = "too long", "the file has become shorter"


@dataclass(frozen=True)
class Bad:
    """Something that cannot be classified.

    Args:
        offset: where it begins: a byte of the unpacked file, or a row of Parquet.
        size: its bytes.
        reason: what is wrong, in a few words.
        shown: its beginning, where it is known.
    """

    offset: int
    size: int
    reason: str
    shown: bytes = b""


@dataclass(frozen=True)
class Piece:
    """Whole rows.

    Args:
        start: offset of the first byte.
        content: the bytes.
        bad: rows that were too long to be held.
        read: bytes of the file, as it lies on the disk, that were read for it.
    """

    start: int
    content: bytes
    bad: tuple[Bad, ...] = ()
    read: int = 0


def read_range(handle: BinaryIO, start: int, stop: int, longest: int) -> Piece:
    """Return the lines that begin within a range of a file; a line longer than `longest` is reported, not held."""
    first = start
    if start:
        handle.seek(start - 1)  # the byte before the range shows whether a line begins with it
        skipped = _to_newline(handle, stop - start + 1)
        if skipped is None:
            return Piece(stop, b"", read=stop - start)
        first = start - 1 + skipped
    if first >= stop:
        return Piece(stop, b"", read=stop - start)
    handle.seek(first)
    content = handle.read(stop - first)
    if len(content) < stop - first:  # what was there when the job began
        whole = content.rfind(b"\n") + 1
        bad = Bad(first + whole, 0, SHRUNK, content[whole : whole + 200])
        return Piece(first, content[:whole], (bad,), stop - start)
    if content.endswith(b"\n"):
        return Piece(first, content, read=stop - start)
    begun = content.rfind(b"\n") + 1
    rest = handle.readline(longest + 1)
    if len(rest) <= longest and (rest.endswith(b"\n") or not handle.read(1)):
        return Piece(first, content + rest, read=stop - start)
    handle.seek(stop + len(rest))
    more = 0 if rest.endswith(b"\n") else _to_newline(handle, None) or 0
    size = len(content) - begun + len(rest) + more
    bad = Bad(first + begun, size, TOO_LONG, content[begun : begun + 200])
    return Piece(first, content[:begun], (bad,), stop - start)


def _to_newline(handle: BinaryIO, most: int | None) -> int | None:
    """Return the bytes up to a newline, it included; without one None, or all to the end if unlimited."""
    seen = 0
    while most is None or seen < most:
        chunk = handle.read(CHUNK if most is None else min(CHUNK, most - seen))
        at = chunk.find(b"\n")
        if at >= 0:
            return seen + at + 1
        seen += len(chunk)
        if not chunk:
            break
    return seen if most is None else None


def quoted_cells(delimiter: str) -> re.Pattern[bytes]:
    """Return what finds cells in quotation marks, which open at a cell's beginning only; one may be open to the end.

    What follows the closing mark ends a cell; elsewhere it closes none, and the row is broken: it has one line only.
    """
    mark = re.escape(delimiter.encode())
    return re.compile(rb"(?:\A|[\r\n" + mark + rb'])"[^"]*+(?:""[^"]*+)*+(?:"(?=[\r\n' + mark + rb"]|\Z)|\Z)")


class Cutter:
    """Cuts a stream of bytes into pieces of whole lines.

    Args:
        size: bytes of a piece, about.
        longest: bytes of a line, at most; what is longer is reported and dropped.
        delimiter: of a row's cells, where a newline within quotation marks ends no row (CSV); None elsewhere.
    """

    def __init__(self, size: int, longest: int, delimiter: str | None = None) -> None:
        self._size, self._longest = size, longest
        self._quoted = None if delimiter is None else quoted_cells(delimiter)
        self._held = bytearray()
        self._start = 0
        self._dropped = 0
        self._shown = b""
        self._bad: list[Bad] = []

    def pieces(self, chunks: Iterable[tuple[bytes, int]]) -> Iterator[Piece]:
        """Yield pieces of a stream of bytes, each chunk with the bytes of the file that it was read from."""
        read = 0
        for chunk, own in chunks:
            read += own
            self._take(chunk)
            while len(self._held) >= self._size and (end := self._end()):
                yield self._piece(end, read)
                read = 0
        if self._dropped:
            self._told()
        if self._held or self._bad or read:
            yield self._piece(len(self._held), read)

    def _take(self, chunk: bytes) -> None:
        if self._dropped:
            at = chunk.find(b"\n")
            self._dropped += len(chunk) if at < 0 else at + 1
            if at < 0:
                return
            self._told()
            chunk = chunk[at + 1 :]
        self._held += chunk

    def _told(self) -> None:
        self._bad.append(Bad(self._start, self._dropped, TOO_LONG, self._shown))
        self._start += self._dropped
        self._dropped = 0

    def _end(self) -> int:
        """Return how many of the bytes that are held are whole rows; a line that is too long is dropped."""
        last = self._held.rfind(b"\n") + 1
        if last and self._quoted is not None:
            end = self._end_of_row(self._quoted)
            # A quotation mark that is never closed must not swallow the file.
            return end or (last if len(self._held) > self._size + self._longest else 0)
        if not last and len(self._held) > self._longest:
            self._shown, self._dropped = bytes(self._held[:200]), len(self._held)
            self._held.clear()
        return last

    def _end_of_row(self, quoted: re.Pattern[bytes]) -> int:
        """Return where the last row ends that ends outside quotation marks; 0 for none."""
        end = after = 0
        for cell in quoted.finditer(self._held):
            end = max(end, self._held.rfind(b"\n", after, cell.start() + 1) + 1)
            after = cell.end()
        return max(end, self._held.rfind(b"\n", after) + 1)

    def _piece(self, end: int, read: int) -> Piece:
        found = Piece(self._start, bytes(self._held[:end]), tuple(self._bad), read)
        del self._held[:end]
        self._start += end
        self._bad = []
        return found
