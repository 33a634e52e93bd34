"""From a block that was read to a shard: known answers, the student's, the backbone's; the audit; and onto the disk."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.bulk.answering import Answerer
from cuecraft.bulk.folder import JobFolder, Shard
from cuecraft.bulk.job import Job
from cuecraft.bulk.reading import Keys, ReadBlock, text_number
from cuecraft.bulk.student import Student
from cuecraft.bulk.table import MODEL, STUDENT, Answers, AnswerTable
from cuecraft.bulk.writing import Writer, write_quarantine
from cuecraft.serve.registry import AnyShelf
from cuecraft.storage import write_file


@dataclass(frozen=True)
class Made:
    """A block with its answers, not yet on the disk.

    Args:
        read: the block.
        answers: `[K, P]`.
        new: keys that were not known before.
        computed: texts that the backbone read.
        by_template: whether each row of the audit agreed that was answered by another text's answer.
        by_student: whether each text of the audit agreed that the student had answered.
    """

    read: ReadBlock
    answers: Answers
    new: NDArray[np.int64]
    computed: int
    by_template: list[bool]
    by_student: list[bool]

    @property
    def fresh(self) -> tuple[Keys, Answers]:
        """The keys that were not known before, and their answers."""
        return self.read.keys[self.new], self.answers.at(self.new)


class Maker:
    """Makes shards.

    Args:
        folder: where they lie.
        answerer: asks the backbone.
        writer: writes rows.
        table: answers that are known.
        is_joined: whether answers are used again.
        audited: rows, and texts of the student, of a shard that are asked about again.
    """

    def __init__(
        self,
        folder: JobFolder,
        answerer: Answerer,
        writer: Writer,
        table: AnswerTable,
        is_joined: bool,
        audited: int,
    ) -> None:
        self._folder, self.answerer, self._writer = folder, answerer, writer
        self._table, self._is_joined, self._audited = table, is_joined, audited
        self.student: Student | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def make(self, read: ReadBlock, told: Callable[[int, int], None]) -> Made:
        """Answer a block; `told` is told how many of how many texts the backbone has answered for it.

        Raises:
            StoppedError: asked to stop.
            OSError: what is kept on the way cannot be written.
        """
        begun = time.perf_counter()
        answers = Answers.empty(len(read.keys), len(self.answerer.prompts))
        known, found = self._table.find(read.keys)
        answers.put(np.flatnonzero(known), found)
        new = rest = np.flatnonzero(~known)
        taught = new[:0]
        if self.student is not None:
            sure, own = self.student.answers([read.texts[key] for key in new])
            answers.put(new[sure], own)
            taught, rest = new[sure], new[~sure]
        audit = [*self._audit_of_joined(read, answers, rest), *self._audit_of_taught(read, taught)]
        texts = [read.texts[key] for key in rest] + [text for _, text, _ in audit]
        self.seconds["look up, student"] += time.perf_counter() - begun
        computed = self.answerer.answers(texts, self._folder.state(read.block.name), told)
        own_rows = np.arange(len(rest))
        answers.put(rest, computed.at(own_rows))
        agreed: dict[int, list[bool]] = {MODEL: [], STUDENT: []}
        for (key, _, maker), labels in zip(audit, computed.labels[len(rest) :], strict=True):
            agreed[maker].append(bool((answers.labels[key] == labels).all()))
        return Made(read, answers, new, len(texts), agreed[MODEL], agreed[STUDENT])

    def _audit_of_joined(
        self, read: ReadBlock, answers: Answers, rest: NDArray[np.int64]
    ) -> list[tuple[int, str, int]]:
        """Return rows that have the backbone's answer to another text: key, text, and who answered."""
        fresh = set(rest.tolist())
        chosen: list[tuple[int, str, int]] = []
        for row, text in read.candidates:
            key = int(read.key_of[row])
            if key in fresh:
                is_own = text == read.texts[key]
            else:
                is_own = answers.makers[key] != MODEL or text_number(text) == answers.texts[key]
            if not is_own and len(chosen) < self._audited:
                chosen.append((key, text, MODEL))
        return chosen

    def _audit_of_taught(self, read: ReadBlock, taught: NDArray[np.int64]) -> list[tuple[int, str, int]]:
        """Return texts that the student has just answered, drawn by their hashes: key, text, and who answered.

        Texts, not rows: most rows have the answer to one of few texts, and would all but never be one of its own.
        """
        drawn = sorted(taught.tolist(), key=lambda key: text_number(read.texts[key]))[: self._audited]
        return [(key, read.texts[key], STUDENT) for key in drawn]

    def store(self, made: Made, dropped: Sequence[str]) -> Shard:
        """Write a shard, its manifest last; then remove answers that are not used again.

        Raises:
            OSError: it cannot be written.
        """
        begun = time.perf_counter()
        folder, read = self._folder, made.read
        name, source = read.block.name, read.block.source.path
        path = folder.answers(name)
        classified, without = self._writer.write(path, read, made.answers)
        bad = [*read.bad, *without]
        write_quarantine(folder.quarantine(name), source, bad)
        if self._is_joined:
            keys, answers = made.fresh
            write_file(folder.known(name), lambda scratch: answers.save(scratch, keys))
        shard = Shard(
            name=name,
            path=source,
            size=read.size,
            read=read.rows,
            classified=classified,
            quarantined=len(bad),
            reasons=dict(Counter(row.reason for row in bad)),
            keys=len(read.keys),
            computed=made.computed,
            taught=int((made.answers.makers[made.new] == STUDENT).sum()),
            template=(len(made.by_template), sum(made.by_template)),
            student=tuple(made.by_student),
            stored=os.stat(path).st_size,
        )
        folder.commit(shard)
        self.answerer.forget(folder.state(name))
        for old in dropped:
            folder.known(old).unlink(missing_ok=True)
        self.seconds["write"] += time.perf_counter() - begun
        return shard


def maker_of(job: Job, folder: JobFolder, shelf: AnyShelf[Any], table: AnswerTable) -> Maker:
    """Return what makes the shards of a job with the prompts of a shelf."""
    command, served = job.command, shelf.all()
    answerer = Answerer(shelf, job.wanted, command.window, job.stop)
    names, classes = [prompt.name for prompt in served], [prompt.classes for prompt in served]
    writer = Writer(names, classes, command.keep, command.output)
    return Maker(folder, answerer, writer, table, command.is_joined, job.audited)
