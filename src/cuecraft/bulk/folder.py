"""The folder of a job: shards of answers, what was put aside, and a manifest for each shard that makes it count.

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuecraft.bulk.agreement import Sampled
from cuecraft.bulk.blocks import Block
from cuecraft.errors import BulkError
from cuecraft.storage import LOCK, parse_json, unwritable, write_text

JOB, SUMMARY = "job.json", "summary.json"
_FOLDERS = ("quarantine", "shards", "state")


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
            raise BulkError(f"{path}: is damaged ({error}); remove it and go on with --resume") from None


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
                raise BulkError(f"{self.path}: exists and is no job of classify; choose another --out")
            where = unwritable(self.path)
            if where is not None:
                raise BulkError(f"{self.path}: {where} cannot be written to; choose another --out")
            return
        there = self._job()
        if not is_resumed:
            raise BulkError(f"{self.path}: holds a job already; --resume goes on with it, or choose another --out")
        for name, value in json.loads(json.dumps(identity)).items():
            if name != "threads" and there.get(name) != value:
                raise BulkError(
                    f"{self.path}: holds another job ({_difference(name, there.get(name), value)}); "
                    "give what it was begun with, or choose another --out"
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
            raise BulkError(f"{path}: is damaged ({error}); choose another --out") from None
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
                raise BulkError(f"{own}: is not as it was written; remove {path} and go on with --resume")
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
