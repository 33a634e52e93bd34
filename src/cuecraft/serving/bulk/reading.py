"""What a process that reads does: a block in; out come its rows as numbers, and the distinct texts among them."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.serving.bulk.blocks import Bad, Block
from cuecraft.serving.bulk.rows import BlockRows, rows_of
from cuecraft.serving.bulk.texts import Wanted, digest, masked

Keys = NDArray[np.uint64]
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64


@dataclass(frozen=True)
class ReadBlock:
    """A block that was read. N rows have K distinct keys: what texts that count as one have in common.

    Args:
        block: the block, without its bytes.
        size: bytes of the file that it stands for.
        offsets: `[N]` where each row begins.
        key_of: `[N]` the number of each row's key.
        keys: `[K, 2]` 128 bits that stand for a key.
        texts: `[K]` the first text of each key.
        candidates: rows that an audit may ask about, each with its text, in the order to ask.
        bad: rows that cannot be classified.
        rows: how many were read, counted by themselves.
        kept: `[N]` fields that are written next to the answers; empty for none.
        seconds: of work.
    """

    block: Block
    size: int
    offsets: NDArray[np.int64]
    key_of: NDArray[np.int32]
    keys: Keys
    texts: list[str]
    candidates: list[tuple[int, str]]
    bad: list[Bad]
    rows: int
    kept: list[tuple[Any, ...]] = field(default_factory=list)
    seconds: float = 0.0


def read_block(block: Block, wanted: Wanted) -> ReadBlock:
    """Read a block."""
    begun = time.process_time()
    rows = rows_of(block, wanted)
    key_of, digests, firsts = _numbered(rows, wanted, block)
    offsets = np.asarray(rows.offsets, dtype=np.int64)
    size = block.stop - block.start if block.piece is None else block.piece.read
    return ReadBlock(
        Block(block.source, block.number, block.start, block.stop),
        size,
        offsets,
        np.asarray(key_of, dtype=np.int32),
        np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2),
        [rows.texts[row] for row in firsts],
        _candidates(rows, offsets, block.source.number, wanted.candidates),
        rows.bad,
        rows.read,
        rows.kept,
        time.process_time() - begun,
    )


def _numbered(
    rows: BlockRows, wanted: Wanted, block: Block
) -> tuple[list[int] | range, list[bytes], list[int] | range]:
    """Return the number of each row's key, the digest of each key, and the first row of each."""
    if not wanted.is_joined:  # every row is a key of its own, which no other row has
        count = len(rows.texts)
        return range(count), [digest(f"{block.name}:{offset}") for offset in rows.offsets], range(count)
    by_text: dict[str, int] = {}
    by_key: dict[str, int] = {}
    key_of: list[int] = []
    firsts: list[int] = []
    for row, text in enumerate(rows.texts):
        number = by_text.get(text)
        if number is None:
            key = masked(text) if wanted.is_masked else text
            number = by_key.setdefault(key, len(by_key))
            if number == len(firsts):
                firsts.append(row)
            by_text[text] = number
        key_of.append(number)
    return key_of, [digest(key) for key in by_key], firsts


def _candidates(rows: BlockRows, offsets: NDArray[np.int64], source: int, most: int) -> list[tuple[int, str]]:
    """Return rows drawn by a hash of their ids, so that every start of the same job draws the same."""
    if not most or not len(offsets):
        return []
    mixed = _mixed(offsets.astype(np.uint64) + (np.uint64(source) << np.uint64(48)))
    order = np.argsort(mixed, kind="stable")[:most]
    return [(row, rows.texts[row]) for row in order.tolist()]


def _mixed(values: Keys) -> Keys:
    """Return 64 bits that look random for each number (splitmix64: Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        found = values + np.uint64(_GOLDEN)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(_MIX_1)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(_MIX_2)
        return found ^ (found >> np.uint64(31))


def text_number(text: str) -> int:
    """Return 63 bits that stand for a text."""
    return int.from_bytes(digest(text)[:8], "little") >> 1


def end_with_parent() -> None:
    """Let this process end with the one that it reads for, even where that is killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_ended_with, args=(parent.sentinel,), daemon=True).start()


def _ended_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
