"""From the bytes of a block to texts, and to what is wrong with the rows that give none."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuecraft.bulk.blocks import DELIMITERS, Block
from cuecraft.bulk.lines import TOO_LONG, Bad, Piece
from cuecraft.bulk.sources import Format
from cuecraft.bulk.texts import NOT_UNICODE, NUL, UnusableError, Wanted, check_text

BROKEN, NOT_OBJECT, COLUMNS = "broken JSON", "not an object", "wrong number of columns"
_SHOWN = 200  # bytes of a bad row that are shown


@dataclass
class Rows:
    """The rows of a block.

    Args:
        offsets: `[N]` where each text's row begins.
        texts: `[N]` fields joined by `texts.SEPARATOR`.
        kept: `[N]` values of the fields that are kept; empty where none are.
        bad: the other rows.
    """

    offsets: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    kept: list[tuple[Any, ...]] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def rows_of(block: Block, wanted: Wanted) -> Rows:
    """Return the rows of a block; blank lines are none."""
    piece = block.loaded(wanted.longest)
    found = Rows(bad=list(piece.bad))
    match block.source.format:
        case Format.JSONL:
            _json_rows(piece, wanted, found)
        case Format.TEXT:
            _text_rows(piece, wanted, found)
        case Format.PARQUET:
            _parquet_rows(piece, wanted, found)
        case Format.CSV | Format.TSV:
            _csv_rows(block, piece, DELIMITERS[block.source.format], wanted, found)
    return found


def _json_rows(piece: Piece, wanted: Wanted, found: Rows) -> None:
    """Take the lines of a piece apart; this is what most of the time of reading goes to."""
    from orjson import JSONDecodeError, loads

    take, keep, longest = wanted.taker(), wanted.keep, wanted.longest
    offset, put_text, put_offset = piece.start, found.texts.append, found.offsets.append
    for line in piece.content.split(b"\n"):
        begin = offset
        size = len(line)
        offset += size + 1
        if not size or line.isspace():
            continue
        try:
            if size > longest:
                raise UnusableError(TOO_LONG)
            row = loads(line if begin else line.removeprefix(b"\xef\xbb\xbf"))
            if row.__class__ is not dict:
                raise UnusableError(NOT_OBJECT)
            put_text(take(row))
        except (JSONDecodeError, UnusableError) as error:
            reason = str(error) if isinstance(error, UnusableError) else _why_broken(line)
            found.bad.append(Bad(begin, size, reason, line[:_SHOWN]))
            continue
        put_offset(begin)
        if keep:
            found.kept.append(tuple([row.get(name) for name in keep]))


def _why_broken(line: bytes) -> str:
    if b"\0" in line:
        return NUL
    try:
        line.decode()
    except UnicodeDecodeError:
        return NOT_UNICODE
    return BROKEN


def _text_rows(piece: Piece, wanted: Wanted, found: Rows) -> None:
    offset = piece.start
    for line in piece.content.split(b"\n"):
        begin = offset
        offset += len(line) + 1
        if not line or line.isspace():
            continue
        try:
            if len(line) > wanted.longest:
                raise UnusableError(TOO_LONG)
            text = line.decode("utf-8-sig" if begin == 0 else "utf-8").removesuffix("\r")
            check_text(text)
        except (UnicodeDecodeError, UnusableError) as error:
            reason = str(error) if isinstance(error, UnusableError) else NOT_UNICODE
            found.bad.append(Bad(begin, len(line), reason, line[:_SHOWN]))
            continue
        found.offsets.append(begin)
        found.texts.append(text)


def _put(row: Mapping[str, Any], at: int, size: int, take: Callable[..., str], wanted: Wanted, found: Rows) -> None:
    """Take one row that has been read into its columns."""
    try:
        found.texts.append(take(row))
    except UnusableError as error:
        found.bad.append(Bad(at, size, str(error), _shown(row)))
        return
    found.offsets.append(at)
    if wanted.keep:
        found.kept.append(tuple(row.get(name) for name in wanted.keep))


def _shown(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, default=repr, ensure_ascii=True)[:_SHOWN].encode()


def _parquet_rows(piece: Piece, wanted: Wanted, found: Rows) -> None:
    if not piece.content:
        return
    import pyarrow as arrow

    take = wanted.taker()
    table = arrow.ipc.open_stream(piece.content).read_all()
    try:
        for number, row in enumerate(table.to_pylist()):
            _put(row, piece.start + number, 0, take, wanted, found)
    except UnicodeDecodeError:  # one bad value fails a whole column, so the rows are taken one by one
        for column in (found.texts, found.offsets, found.kept, found.bad):
            column.clear()
        for number in range(table.num_rows):
            try:
                (row,) = table.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                found.bad.append(Bad(piece.start + number, 0, NOT_UNICODE))
            else:
                _put(row, piece.start + number, 0, take, wanted, found)


class _Lines:
    """The lines of a piece as text, for the CSV reader, which may take several for one row; knows where it is."""

    def __init__(self, piece: Piece, longest: int, found: Rows) -> None:
        self.offset = piece.start
        self.begun: int | None = None  # where the row begins that is being read
        self._piece, self._longest, self._found = piece, longest, found

    def __iter__(self) -> Iterator[str]:
        for line in self._piece.content.splitlines(keepends=True):
            if len(line) > self._longest:
                self._found.bad.append(Bad(self.offset, len(line), TOO_LONG, line[:_SHOWN]))
                self.offset += len(line)
                continue
            if self.begun is None:
                self.begun = self.offset
            self.offset += len(line)
            yield line.decode("utf-8", "surrogateescape")


def _csv_rows(block: Block, piece: Piece, delimiter: str, wanted: Wanted, found: Rows) -> None:
    """Take the rows of a CSV piece; the names of the columns are those of the file's first row."""
    header = block.header
    take = wanted.taker()
    csv.field_size_limit(wanted.longest)
    lines = _Lines(piece, wanted.longest, found)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    while True:
        lines.begun = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            begin = piece.start if lines.begun is None else lines.begun
            found.bad.append(Bad(begin, lines.offset - begin, f"broken CSV ({error})"))
            continue
        if not cells:
            continue
        begin = piece.start if lines.begun is None else lines.begun
        shown = delimiter.join(cells).encode("utf-8", "surrogateescape")[:_SHOWN]
        if len(cells) != len(header):
            found.bad.append(Bad(begin, lines.offset - begin, COLUMNS, shown))
        elif not all(map(_is_unicode, cells)):
            found.bad.append(Bad(begin, lines.offset - begin, NOT_UNICODE, shown))
        else:
            _put(dict(zip(header, cells, strict=True)), begin, lines.offset - begin, take, wanted, found)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
