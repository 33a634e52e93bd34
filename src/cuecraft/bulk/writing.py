"""Shards on disk: a row's id, its labels and probabilities, what is kept of it; and rows that were put aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.bulk.lines import Bad
from cuecraft.bulk.reading import ReadBlock
from cuecraft.bulk.table import NO_ANSWER, Answers
from cuecraft.bulk.texts import answer_columns, kept_columns
from cuecraft.storage import write_file

JSONL, PARQUET = "jsonl", "parquet"
NO_TOKENS = "no tokens"
_DIGITS = 6  # of a probability


class Writer:
    """Writes the answers of P prompts.

    Args:
        names: `[P]` of the prompts.
        classes: `[P]` the classes of each.
        keep: names of the fields that are written next to the answers.
        output: ``jsonl`` or ``parquet``.

    Raises:
        BulkError: two columns would have one name.
    """

    def __init__(
        self, names: Sequence[str], classes: Sequence[Sequence[Any]], keep: Sequence[str], output: str
    ) -> None:
        self._classes, self._keep, self._output = classes, keep, output
        self.columns = answer_columns(names)
        self._kept_names = kept_columns(names, keep)

    def write(self, path: Path, read: ReadBlock, answers: Answers) -> tuple[int, list[Bad]]:
        """Write the rows of a block with their keys' answers `[K, P]`; return how many, and those that have none.

        Raises:
            OSError: they cannot be written.
        """
        has_answer = (answers.labels != NO_ANSWER).all(1)[read.key_of]
        rows = np.flatnonzero(has_answer)
        fill = self._fill_parquet if self._output == PARQUET else self._fill_jsonl
        write_file(path, lambda scratch: fill(scratch, read, answers, rows))
        return len(rows), [Bad(int(offset), 0, NO_TOKENS) for offset in read.offsets[~has_answer]]

    def _fill_jsonl(self, path: Path, read: ReadBlock, answers: Answers, rows: NDArray[np.int64]) -> None:
        head = b'{"id":' + json.dumps(f"{read.block.source.shown}:", ensure_ascii=False).encode()[:-1]
        ends = [b'",' + own for own in self._answers_as_json(answers)]
        offsets, keys = read.offsets[rows].tolist(), read.key_of[rows].tolist()
        lines: Iterable[bytes]
        if self._keep:
            kept = self._kept_as_json([read.kept[row] for row in rows.tolist()])
            lines = (
                b"%b%d%b%b}\n" % (head, at, ends[key], own) for at, key, own in zip(offsets, keys, kept, strict=True)
            )
        else:
            ends = [own + b"}\n" for own in ends]
            lines = [b"%b%d%b" % (head, at, ends[key]) for at, key in zip(offsets, keys, strict=True)]
        with path.open("wb") as handle:
            handle.writelines(lines)

    def _answers_as_json(self, answers: Answers) -> list[bytes]:
        """Return what is written of each key's answer `[K]`."""
        parts: list[list[bytes]] = []
        for number, (label, probability, truncated) in enumerate(self.columns):
            names = [json.dumps(name, ensure_ascii=False) for name in self._classes[number]]
            begin = [f"{json.dumps(label)}:{name},{json.dumps(probability)}:".encode() for name in names]
            end = [f",{json.dumps(truncated)}:{json.dumps(is_cut)}".encode() for is_cut in (False, True)]
            shares = np.round(answers.probabilities[:, number].astype(np.float64), _DIGITS).tolist()
            labels = answers.labels[:, number].tolist()
            told = zip(labels, shares, answers.cut[:, number].tolist(), strict=True)
            parts.append([b"%b%b%b" % (begin[n], repr(p).encode(), end[is_cut]) for n, p, is_cut in told])
        return [b",".join(own) for own in zip(*parts, strict=True)]

    def _kept_as_json(self, kept: Sequence[Sequence[Any]]) -> Iterable[bytes]:
        from orjson import dumps

        names = [b"," + dumps(name) + b":" for name in self._kept_names]
        for values in kept:
            yield b"".join([name + _as_json(value, dumps) for name, value in zip(names, values, strict=True)])

    def _fill_parquet(self, path: Path, read: ReadBlock, answers: Answers, rows: NDArray[np.int64]) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        keys = read.key_of[rows]
        source = read.block.source.shown
        columns: dict[str, Any] = {"id": [f"{source}:{offset}" for offset in read.offsets[rows].tolist()]}
        for number, (label, probability, truncated) in enumerate(self.columns):
            names = arrow.array([str(name) for name in self._classes[number]])
            columns[label] = names.take(arrow.array(answers.labels[keys, number]))
            columns[probability] = arrow.array(
                np.round(answers.probabilities[keys, number].astype(np.float64), _DIGITS)
            )
            columns[truncated] = arrow.array(answers.cut[keys, number])
        for place, name in enumerate(self._kept_names):
            columns[name] = arrow.array([_as_text(read.kept[row][place]) for row in rows.tolist()], arrow.string())
        with path.open("wb") as handle:  # pyarrow takes no path that is not UTF-8
            parquet.write_table(arrow.table(columns), handle, compression="zstd")


def _as_json(value: Any, dumps: Any) -> bytes:
    try:
        found: bytes = dumps(value)
    except TypeError:  # what Parquet has and JSON has not
        found = dumps(str(value))
    return found


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def write_quarantine(path: Path, source: str, bad: Sequence[Bad]) -> None:
    """Write rows that were put aside, by their offsets.

    Raises:
        OSError: they cannot be written.
    """

    def fill(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", errors="replace") as handle:
            for row in sorted(bad, key=lambda row: row.offset):
                shown = row.shown.decode("utf-8", "backslashreplace")
                line = {"path": source, "offset": row.offset, "reason": row.reason, "bytes": row.size, "begins": shown}
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")

    if bad:
        write_file(path, fill)
