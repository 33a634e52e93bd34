"""Blocks: the pieces of the inputs that are read, answered and written each as one. Where they begin never varies.

Bytes are cut where a row ends, in bounded memory whatever the bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from cuecraft.core.errors import BulkError, DataError
from cuecraft.data.files import Format, Packing, Stream, check_beginning, csv_rows, without_mark
from cuecraft.data.records import check_names
from cuecraft.serving.bulk.sources import Source

CHUNK = 1 << 16  # bytes that are read at once where it is only looked for the end of a line

TOO_LONG, SHRUNK = "too long", "the file has become shorter"
_LOOKED_INTO = 32  # files whose names of columns are checked before a job begins
_HEADER = 1 << 16  # bytes of a file that are looked at for that, about


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


@dataclass(frozen=True)
class Block:
    """A part of one input.

    Args:
        source: the input.
        number: its place in the input.
        start: the offset that it begins at, for a block that is read where it is needed.
        stop: and ends at.
        piece: what was read already, of an input that has to be read from its beginning on; None elsewhere. Of Parquet
            an Arrow stream, its offsets counting rows.
        header: the names of the columns of a CSV file.
    """

    source: Source
    number: int
    start: int = 0
    stop: int = 0
    piece: Piece | None = None
    header: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What its shard is called."""
        return f"{self.source.number:05d}-{self.number:06d}"

    def loaded(self, longest: int) -> Piece:
        """Return its bytes; a file that cannot be read is one bad row."""
        if self.piece is not None:
            return self.piece
        try:
            with open(self.source.path, "rb") as handle:
                return read_range(handle, self.start, self.stop, longest)
        except OSError as error:
            return Piece(self.start, b"", (_unreadable(self.start, error),), self.stop - self.start)


def _unreadable(offset: int, error: OSError) -> Bad:
    return Bad(offset, 0, f"unreadable ({error.strerror or error})")


def blocks_of(source: Source, size: int, longest: int, columns: Sequence[str]) -> Iterator[Block]:
    """Yield the blocks of an input, in order.

    Args:
        source: the input.
        size: bytes of a block, about.
        longest: bytes of a row, at most.
        columns: what is wanted of a Parquet file.

    Raises:
        BulkError: a package for this kind of input is not installed, or two columns have one name.
    """
    if source.is_split:
        for number, start in enumerate(range(0, source.size, size)):
            yield Block(source, number, start, min(start + size, source.size))
        return
    if source.format is Format.PARQUET:
        pieces = _parquet_pieces(source, size, columns)
    else:
        pieces = _stream_pieces(source, size, longest)
    header: tuple[str, ...] = ()
    for number, piece in enumerate(pieces):
        if source.cells is not None and number == 0:
            header, piece = _headed(source, piece, source.cells)
        yield Block(source, number, piece=piece, header=header)


def check_headers(sources: Sequence[Source], columns: Sequence[str]) -> None:
    """Raise BulkError where two columns of an input have one name, or one is no such file, before anything is written.

    Looks into the first few files alone for names of columns; a later one is looked at when its turn comes.
    """
    for source in sources:
        if not source.is_stream:
            _check_beginning(source, _beginning(source))
    for source in sources[:_LOOKED_INTO]:
        if not source.is_stream and (source.cells is not None or source.format is Format.PARQUET):
            next(blocks_of(source, _HEADER, _HEADER, columns), None)


def _beginning(source: Source) -> bytes:
    """Return the first bytes of a file, unpacked; those that cannot be read are a bad row later."""
    try:
        if source.packing is Packing.NONE:
            with open(source.path, "rb") as handle:
                return handle.read(32)
        return next((content for content, _ in Stream(source.path, source.packing).chunks() if content), b"")
    except OSError:
        return b""


def _check_beginning(source: Source, first: bytes) -> None:
    if source.format is not Format.PARQUET:
        try:
            check_beginning(source.path, first)
        except DataError as error:
            raise BulkError(str(error)) from None
    elif first.startswith(b"version https://git-lfs"):
        raise BulkError(f"{source.path}: not Parquet: it is a Git LFS pointer; fetch the file with: git lfs pull")


def _check_names(source: Source, names: Sequence[str]) -> None:
    try:
        check_names(source.path, names)
    except DataError as error:
        raise BulkError(str(error)) from None


def _headed(source: Source, piece: Piece, delimiter: str) -> tuple[tuple[str, ...], Piece]:
    """Return the names of a CSV file's columns, and its first piece without them and blank lines before them.

    Raises:
        BulkError: the row of names is broken, or two have one name.
    """
    content = without_mark(piece.content)
    size = len(piece.content) - len(content)
    header: tuple[str, ...] = ()
    for row in csv_rows([content], delimiter):
        size += row.size
        if row.fault:
            raise BulkError(f"{source.path} line {row.first}: broken CSV ({row.fault}); fix the names of the columns")
        if row.cells:
            header = tuple(row.cells)
            break
    _check_names(source, header)
    return header, replace(piece, start=piece.start + size, content=piece.content[size:])


def blocks_expected(sources: Sequence[Source], size: int) -> int:
    """Return how many blocks there will be, about: packed files are taken for an eighth of what they hold."""
    factor = {Packing.NONE: 1, Packing.GZIP: 8, Packing.ZSTD: 8}
    return max(1, sum(-(-source.size * factor[source.packing] // size) for source in sources))


def _stream_pieces(source: Source, size: int, longest: int) -> Iterator[Piece]:
    """Yield pieces of a stream; where it breaks off, what stands there is one bad row."""
    reading = Stream(source.path, source.packing)
    cutter = Cutter(size, longest, source.cells)
    last: Piece | None = None
    for piece in cutter.pieces(reading.chunks()):
        if last is not None:
            yield last
        last = piece
    if reading.trouble is None:
        if last is not None:
            yield last
        return
    last = last or Piece(0, b"")
    whole = last.content.rfind(b"\n") + 1  # what comes after the last newline is half a row
    bad = Bad(last.start + whole, len(last.content) - whole, reading.trouble, last.content[whole : whole + 200])
    yield Piece(last.start, last.content[:whole], (*last.bad, bad), last.read)


def _parquet_pieces(source: Source, size: int, columns: Sequence[str]) -> Iterator[Piece]:
    """Yield pieces of a Parquet file, as Arrow streams of the columns that are wanted; offsets are rows."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise BulkError(f"{source.path}: Parquet needs a further package: pip install 'cuecraft[bulk]'") from None
    row = 0
    try:
        with open(source.path, "rb") as handle, parquet.ParquetFile(handle) as file:
            total = max(1, file.metadata.num_rows)
            _check_names(source, file.schema_arrow.names)
            own = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
            own = own or file.schema_arrow.names[:1]  # of a file without them, the rows have still to be counted
            for batch in file.iter_batches(batch_size=max(1, size // _bytes_of_row(file.metadata, own)), columns=own):
                sink = arrow.BufferOutputStream()
                with arrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield Piece(row, sink.getvalue().to_pybytes(), read=source.size * batch.num_rows // total)
                row += batch.num_rows
    except (arrow.ArrowException, OSError, UnicodeDecodeError):
        yield Piece(row, b"", (Bad(row, 0, "damaged Parquet"),))


def _bytes_of_row(metadata: Any, columns: Sequence[str]) -> int:
    """Return how many bytes some columns of a row of Parquet take where they take the most, unpacked, on average."""
    most = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        parts = [group.column(place) for place in range(group.num_columns)]
        own = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
        most = max(most, own // max(1, group.num_rows))
    return most
