"""The folder of a job and its shards: answers, what was put aside, and the manifest that makes a shard count.

===========================  ===================================================================================
job.json                     what the job is: prompts, inputs, options; another job's folder is refused
part-SSSSS-BBBBBB.jsonl      the answers to block B of input S (or ``.parquet``)
quarantine/part-...jsonl     rows of that block that could not be classified: path, offset, reason
shards/part-...json          the shard's manifest: written last, in one step; without it the shard is not there
state/                       answers to be used again, the student, windows of unfinished shards
summary.json                 the end: what was read, classified, put aside
===========================  ===================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.core.errors import BulkError, named
from cuecraft.core.storage import LOCK, parse_json, unwritable, write_file, write_text
from cuecraft.serving.bulk.blocks import Bad, Block
from cuecraft.serving.bulk.reading import ReadBlock
from cuecraft.serving.bulk.student import Sampled
from cuecraft.serving.bulk.table import DIGITS, NO_ANSWER, NONE_OF_THESE, AnswerBatch
from cuecraft.serving.bulk.texts import answer_columns, kept_columns

JOB, SUMMARY = "job.json", "summary.json"
_FOLDERS = ("quarantine", "shards", "state")
JSONL, PARQUET = "jsonl", "parquet"
NO_TOKENS = "no tokens"
_NO_CLASS = {NO_ANSWER: "null", NONE_OF_THESE: "null"}


@dataclass(frozen=True)
class Shard:
    """The manifest of a shard.

    Args:
        name: of the block.
        path: of the input.
        size: bytes of the input that it stands for.
        read: rows, bad ones included.
        classified: rows with an answer.
        quarantined: rows without.
        reasons: how many rows were put aside for what.
        keys: distinct texts, as far as texts that count as one are one.
        computed: texts that the backbone read for it, those of the audit included.
        taught: distinct texts that the student answered.
        template: rows of the audit that have the backbone's answer to another text, and how many agreed.
        student: whether each row of the audit agreed that has an answer of a student.
        stored: bytes of the answers' file.
        aside: bytes of the quarantine's.
    """

    name: str
    path: str
    size: int
    read: int
    classified: int
    quarantined: int
    reasons: Mapping[str, int]
    keys: int
    computed: int
    taught: int
    template: tuple[int, int]
    student: tuple[bool, ...]
    stored: int
    aside: int

    @property
    def by_template(self) -> Sampled:
        """The audit of answers of other texts."""
        return Sampled(*self.template)

    @property
    def by_student(self) -> Sampled:
        """The audit of the student's answers."""
        return Sampled(len(self.student), sum(self.student))

    @classmethod
    def read_from(cls, path: Path) -> Shard:
        """Return a manifest that was written; raises BulkError where it is damaged."""
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            return cls(**found | {"template": tuple(found["template"]), "student": tuple(found["student"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BulkError(f"{path}: is damaged ({error}); remove it and go on with {named('resume')}") from None


class JobFolder:
    """The folder of a job.

    Args:
        path: the folder.
        ending: of the files of answers.
    """

    def __init__(self, path: Path, ending: str) -> None:
        self.path, self._ending = path, ending

    def check(self, identity: Mapping[str, Any], is_resumed: bool) -> None:
        """Raise BulkError where the folder holds something else, or cannot be used; nothing is written.

        Args:
            identity: of the job.
            is_resumed: whether to go on where it holds this job already.
        """
        job = self.path / JOB
        if not job.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(p.name != LOCK for p in self.path.iterdir())):
                raise BulkError(f"{self.path}: exists and is no job of classify; choose another {named('out')}")
            where = unwritable(self.path)
            if where is not None:
                raise BulkError(f"{self.path}: {where} cannot be written to; choose another {named('out')}")
            return
        there = self._job()
        if not is_resumed:
            raise BulkError(
                f"{self.path}: holds a job already; {named('resume')} goes on with it, or choose another {named('out')}"
            )
        for name, value in json.loads(json.dumps(identity)).items():
            if name != "threads" and there.get(name) != value:
                raise BulkError(
                    f"{self.path}: holds another job ({_difference(name, there.get(name), value)}); "
                    f"give what it was begun with, or choose another {named('out')}"
                )

    def begun(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Write what the job is, unless it is there; return it as it is there.

        Raises:
            OSError: it cannot be written.
        """
        if not (self.path / JOB).is_file():
            write_text(self.path / JOB, json.dumps(identity, indent=1) + "\n")
        for name in _FOLDERS:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return self._job()

    def _job(self) -> dict[str, Any]:
        path = self.path / JOB
        try:
            found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BulkError(f"{path}: is damaged ({error}); choose another {named('out')}") from None
        return found

    def answers(self, name: str) -> Path:
        """Return the file of a shard's answers."""
        return self.path / f"part-{name}{self._ending}"

    def quarantine(self, name: str) -> Path:
        """Return the file of what a shard put aside."""
        return self.path / "quarantine" / f"part-{name}.jsonl"

    def state(self, name: str) -> Path:
        """Return a file of the state."""
        return self.path / "state" / name

    def known(self, name: str) -> Path:
        """Return the file of answers that a shard added to those that are used again."""
        return self.state(f"{name}.answers")

    def manifest(self, name: str) -> Path:
        """Return the manifest of a shard."""
        return self.path / "shards" / f"part-{name}.json"

    def commit(self, shard: Shard) -> None:
        """Let a shard count, all of whose files are on the disk."""
        write_text(self.manifest(shard.name), json.dumps(asdict(shard)) + "\n")

    def finished(self, block: Block) -> Shard | None:
        """Return the manifest of a block's shard; None where there is none.

        Raises:
            BulkError: it is damaged, or its answers or what it put aside is gone.
        """
        path = self.manifest(block.name)
        if not path.is_file():
            return None
        shard = Shard.read_from(path)
        for own, size in ((self.answers(shard.name), shard.stored), (self.quarantine(shard.name), shard.aside)):
            if (own.stat().st_size if own.is_file() else 0) != size:
                raise BulkError(f"{own}: is not as it was written; remove {path} and go on with {named('resume')}")
        return shard

    def shards(self) -> Iterator[Shard]:
        """Yield all manifests, in the order of the inputs."""
        for path in sorted((self.path / "shards").glob("part-*.json")):
            yield Shard.read_from(path)

    def clean(self) -> None:
        """Remove the answers that a finished job needs no more."""
        for path in (self.path / "state").glob("*.answers"):
            path.unlink(missing_ok=True)


def _difference(name: str, there: Any, now: Any) -> str:
    """Tell in a few words in what two jobs differ."""
    if isinstance(there, list) and isinstance(now, list):
        for one, other in zip(there, now, strict=False):
            if (
                one != other
                and isinstance(one, dict)
                and isinstance(other, dict)
                and one.get("path") == other.get("path")
            ):
                return f"{one['path']} has changed since"
        return f"its {name} are others"
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        return f"{keys[0]} was {there.get(keys[0])!r}, and is {now.get(keys[0])!r}"
    return f"{name} was {there!r}, and is {now!r}"


class Writer:
    """Writes the answers of P prompts.

    Args:
        classes: of each prompt by name; None where its answers are no labels.
        keep: names of the fields that are written next to the answers.
        output: ``jsonl`` or ``parquet``.

    Raises:
        BulkError: two columns would have one name.
    """

    def __init__(self, classes: Mapping[str, Sequence[Any] | None], keep: Sequence[str], output: str) -> None:
        self._keep, self._output = keep, output
        has_labels = {name: own is not None for name, own in classes.items()}
        self.columns = answer_columns(has_labels)
        self._kept_names = kept_columns(has_labels, keep)
        others = iter(range(len(classes)))
        #: For each prompt its classes, or the number of its column in `Answers.values`.
        self._classes = [next(others) if own is None else own for own in classes.values()]

    def write(self, path: Path, read: ReadBlock, answers: AnswerBatch) -> tuple[int, list[Bad]]:
        """Write the rows of a block with their keys' answers `[K, P]`; return how many, and those that have none.

        Raises:
            OSError: they cannot be written.
        """
        has_answer = (answers.labels != NO_ANSWER).all(1)[read.key_of]
        rows = np.flatnonzero(has_answer)
        fill = self._fill_parquet if self._output == PARQUET else self._fill_jsonl
        write_file(path, lambda scratch: fill(scratch, read, answers, rows))
        return len(rows), [Bad(int(offset), 0, NO_TOKENS) for offset in read.offsets[~has_answer]]

    def _fill_jsonl(self, path: Path, read: ReadBlock, answers: AnswerBatch, rows: NDArray[np.int64]) -> None:
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

    def _answers_as_json(self, answers: AnswerBatch) -> list[bytes]:
        """Return what is written of each key's answer `[K]`."""
        parts: list[list[bytes]] = []
        for number, (label, probability, truncated, more) in enumerate(self.columns):
            classes = self._classes[number]
            end = [f",{json.dumps(truncated)}:{json.dumps(is_cut)}".encode() for is_cut in (False, True)]
            if isinstance(classes, int):
                own = _parsed(answers.values[:, classes], answers.probabilities[:, number])
                named = zip(own, answers.cut[:, number].tolist(), strict=True)
                parts.append([_object((label, probability, *more), values) + end[is_cut] for values, is_cut in named])
                continue
            names = dict(enumerate(json.dumps(name, ensure_ascii=False) for name in classes)) | _NO_CLASS
            begin = {n: f"{json.dumps(label)}:{name},{json.dumps(probability)}:".encode() for n, name in names.items()}
            shares = np.round(answers.probabilities[:, number].astype(np.float64), DIGITS).tolist()
            labels = answers.labels[:, number].tolist()
            told = zip(labels, shares, answers.cut[:, number].tolist(), strict=True)
            parts.append([b"%b%b%b" % (begin[n], repr(p).encode(), end[is_cut]) for n, p, is_cut in told])
        return [b",".join(own) for own in zip(*parts, strict=True)]

    def _kept_as_json(self, kept: Sequence[Sequence[Any]]) -> Iterable[bytes]:
        from orjson import dumps

        names = [b"," + dumps(name) + b":" for name in self._kept_names]
        for values in kept:
            yield b"".join([name + _as_json(value, dumps) for name, value in zip(names, values, strict=True)])

    def _fill_parquet(self, path: Path, read: ReadBlock, answers: AnswerBatch, rows: NDArray[np.int64]) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        keys = read.key_of[rows]
        source = read.block.source.shown
        columns: dict[str, Any] = {"id": [f"{source}:{offset}" for offset in read.offsets[rows].tolist()]}
        for number, (label, probability, truncated, more) in enumerate(self.columns):
            classes = self._classes[number]
            if isinstance(classes, int):
                own = _parsed(answers.values[keys, classes], answers.probabilities[keys, number])
                values = [_as_json_text(value) for value, *_ in own]
                columns[label] = arrow.array(values, arrow.string())
                for place, name in enumerate(more, start=2):
                    columns[name] = arrow.array([_as_json_text(row[place]) for row in own], arrow.string())
            else:
                names = arrow.array([str(name) for name in classes])
                labels = answers.labels[keys, number]
                columns[label] = names.take(arrow.array(labels, mask=labels < 0))
            columns[probability] = arrow.array(np.round(answers.probabilities[keys, number].astype(np.float64), DIGITS))
            columns[truncated] = arrow.array(answers.cut[keys, number])
        for place, name in enumerate(self._kept_names):
            columns[name] = arrow.array([_as_text(read.kept[row][place]) for row in rows.tolist()], arrow.string())
        with path.open("wb") as handle:  # pyarrow takes no path that is not UTF-8
            parquet.write_table(arrow.table(columns), handle, compression="zstd")


def _parsed(values: NDArray[np.object_], probabilities: NDArray[np.float32]) -> list[tuple[Any, ...]]:
    """Return of answers that are no labels `[K]` each one's value, confidence, options and interval (or None)."""
    found = []
    for written, share in zip(values, np.round(probabilities.astype(np.float64), DIGITS).tolist(), strict=True):
        own = json.loads(written) if written else {}
        found.append((own.get("value"), share, own.get("options"), own.get("interval")))
    return found


def _object(names: Sequence[str], values: Sequence[Any]) -> bytes:
    """Return the inside of a JSON object; what an answer has not is left out, but for its value."""
    pairs = zip(names, values, strict=True)
    there = [(name, value) for name, value in pairs if value is not None or name == names[0]]
    return json.dumps(dict(there), ensure_ascii=False, separators=(",", ":"))[1:-1].encode()


def _as_json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


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
