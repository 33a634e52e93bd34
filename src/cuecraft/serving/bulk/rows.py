"""From the bytes of a block to texts, and to what is wrong with the rows that give none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuecraft.data.files import Format, csv_rows, text_of, without_mark
from cuecraft.data.records import names_twice
from cuecraft.serving.bulk.blocks import TOO_LONG, Bad, Block, Piece
from cuecraft.serving.bulk.texts import NOT_UNICODE, NUL, UnusableError, Wanted, check_text

BROKEN, NOT_OBJECT, COLUMNS = "broken JSON", "not an object", "wrong number of columns"
OUT_OF_RANGE, TWICE = "value out of range", "two fields of the name"
_SHOWN = 200  # bytes of a bad row that are shown
_SHOWN_NAME = 40  # characters of a name in a reason


@dataclass
class BlockRows:
    """The rows of a block.

    Args:
        offsets: `[N]` where each text's row begins.
        texts: `[N]` fields joined by `texts.SEPARATOR`.
        kept: `[N]` values of the fields that are kept; empty where none are.
        bad: the other rows.
        read: how many were met, counted by themselves.
    """

    offsets: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    kept: list[tuple[Any, ...]] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    read: int = 0


def rows_of(block: Block, wanted: Wanted) -> BlockRows:
    """Return the rows of a block; blank lines are none."""
    piece = block.loaded(wanted.longest)
    found = BlockRows(bad=list(piece.bad), read=len(piece.bad))
    match block.source.format:
        case Format.JSONL:
            _json_rows(piece, wanted, found)
        case Format.TEXT:
            _text_rows(piece, wanted, found)
        case Format.PARQUET:
            _parquet_rows(piece, wanted, found)
        case Format.CSV | Format.TSV:
            assert block.source.cells is not None
            _csv_rows(block, piece, block.source.cells, wanted, found)
    return found


def _json_rows(piece: Piece, wanted: Wanted, found: BlockRows) -> None:
    """Take the lines of a piece apart; this is what most of the time of reading goes to."""
    from orjson import JSONDecodeError, loads

    take, keep, longest = wanted.taker(), wanted.keep, wanted.longest
    offset, put_text, put_offset = piece.start, found.texts.append, found.offsets.append
    lines = piece.content.split(b"\n")
    found.read += len(lines)
    for line in lines:
        begin = offset
        size = len(line)
        offset += size + 1
        if not size or line.isspace():
            found.read -= 1
            continue
        try:
            if size > longest:
                raise UnusableError(TOO_LONG)
            row = loads(line if begin else without_mark(line))
            if row.__class__ is not dict:
                raise UnusableError(NOT_OBJECT)
            # As many keys as names, none with a blank behind it: then no name is there twice.
            if line.count(b'":') != len(row) or b'" ' in line or b'"\t' in line or b'"\r' in line:
                _check_keys(line, row)
            put_text(take(row))
        except (JSONDecodeError, UnusableError) as error:
            reason = str(error) if isinstance(error, UnusableError) else _why_broken(line)
            found.bad.append(Bad(begin, size, reason, line[:_SHOWN]))
            continue
        put_offset(begin)
        if keep:
            found.kept.append(tuple([row.get(name) for name in keep]))


def _check_keys(line: bytes, row: Mapping[str, Any]) -> None:
    """Raise UnusableError where an object of JSON names a field twice; `row` has each of its names once."""
    if b"\\" not in line and all(line.count(f'"{name}"'.encode()) == 1 for name in row):
        return  # a name cannot be written in two ways then
    try:
        twice = names_twice(line)
    except (ValueError, RecursionError):  # deeper, or a number longer, than this reader of JSON takes
        return
    if twice:
        raise UnusableError(f"{TWICE} {twice[0][:_SHOWN_NAME]!r}")


def _why_broken(line: bytes) -> str:
    if b"\0" in line:
        return NUL
    try:
        line.decode()
    except UnicodeDecodeError:
        return NOT_UNICODE
    return BROKEN


def _text_rows(piece: Piece, wanted: Wanted, found: BlockRows) -> None:
    offset = piece.start
    lines = piece.content.split(b"\n")
    found.read += len(lines)
    for line in lines:
        begin = offset
        offset += len(line) + 1
        if not line or line.isspace():
            found.read -= 1
            continue
        try:
            if len(line) > wanted.longest:
                raise UnusableError(TOO_LONG)
            text = text_of(line, is_first=begin == 0)
            check_text(text)
        except (UnicodeDecodeError, UnusableError) as error:
            reason = str(error) if isinstance(error, UnusableError) else NOT_UNICODE
            found.bad.append(Bad(begin, len(line), reason, line[:_SHOWN]))
            continue
        found.offsets.append(begin)
        found.texts.append(text)


def _put(
    row: Mapping[str, Any], at: int, size: int, take: Callable[..., str], wanted: Wanted, found: BlockRows
) -> None:
    """Take one row that has been read into its columns."""
    try:
        text = take(row)
        if len(text) > wanted.longest or len(text.encode()) > wanted.longest:
            raise UnusableError(TOO_LONG)
        found.texts.append(text)
    except UnusableError as error:
        found.bad.append(Bad(at, size, str(error), _shown(row)))
        return
    found.offsets.append(at)
    if wanted.keep:
        found.kept.append(tuple(row.get(name) for name in wanted.keep))


def _shown(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, default=repr, ensure_ascii=True)[:_SHOWN].encode()


def _parquet_rows(piece: Piece, wanted: Wanted, found: BlockRows) -> None:
    if not piece.content:
        return
    import pyarrow as arrow

    take = wanted.taker()
    table = arrow.ipc.open_stream(piece.content).read_all()
    found.read += table.num_rows
    try:
        for number, row in enumerate(table.to_pylist()):
            _put(row, piece.start + number, 0, take, wanted, found)
    except (ValueError, OverflowError):  # one bad value fails a whole column, so the rows are taken one by one
        for column in (found.texts, found.offsets, found.kept, found.bad):
            column.clear()
        for number in range(table.num_rows):
            try:
                (row,) = table.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                found.bad.append(Bad(piece.start + number, 0, NOT_UNICODE))
            except (ValueError, OverflowError):  # such as a day that Python has no number for
                found.bad.append(Bad(piece.start + number, 0, OUT_OF_RANGE))
            else:
                _put(row, piece.start + number, 0, take, wanted, found)


def _csv_rows(block: Block, piece: Piece, delimiter: str, wanted: Wanted, found: BlockRows) -> None:
    """Take the rows of a CSV piece; the names of the columns are those of the file's first row."""
    header = block.header
    take = wanted.taker()
    end = piece.start
    for row in csv_rows([piece.content], delimiter):
        begin, end = end, end + row.size
        if not row.cells and not row.fault:
            continue
        found.read += 1
        trouble = ""
        if row.size > wanted.longest:
            trouble = TOO_LONG
        elif row.fault:
            trouble = f"broken CSV ({row.fault})"
        elif len(row.cells) != len(header):
            trouble = COLUMNS
        elif not row.is_unicode:
            trouble = NOT_UNICODE
        if trouble:
            shown = piece.content[begin - piece.start : min(begin + _SHOWN, end) - piece.start]
            found.bad.append(Bad(begin, row.size, trouble, shown))
        else:
            _put(dict(zip(header, row.cells, strict=True)), begin, row.size, take, wanted, found)
