"""The rows of CSV. Of a broken one, only the line that it begins in is lost: the lines after it are rows again."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_FIELD = 2**31 - 1  # characters of a cell


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
