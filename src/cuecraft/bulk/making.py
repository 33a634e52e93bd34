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
        by_template: whether each row of the audit agreed that has the backbone's answer to another text.
        by_student: whether each row of the audit agreed that has an answer of the student.
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
        is_joined: whether answers are used again in other shards, which then find them on the disk.
        audited: rows of a shard that are asked about again, of each kind of answer.
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
        """Answer a block; `told` is called with how many of how many texts the backbone has answered for it.

        Raises:
            StoppedError: asked to stop.
            OSError: what is kept on the way cannot be written.
        """
        begun = time.perf_counter()
        answers = Answers.empty(len(read.keys), len(self.answerer.prompts))
        known, found = self._table.find(read.keys)
        answers.put(np.flatnonzero(known), found)
        new = rest = np.flatnonzero(~known)
        if self.student is not None:
            sure, own = self.student.answers([read.texts[key] for key in new])
            answers.put(new[sure], own)
            rest = new[~sure]
        audit = self._audit(read, answers, rest)
        texts = [read.texts[key] for key in rest] + [text for _, text, _ in audit]
        self.seconds["look up, student"] += time.perf_counter() - begun
        computed = self.answerer.answers(texts, self._folder.state(read.block.name), told)
        own_rows = np.arange(len(rest))
        answers.put(rest, computed.at(own_rows))
        agreed: dict[int, list[bool]] = {MODEL: [], STUDENT: []}
        for (key, _, maker), labels in zip(audit, computed.labels[len(rest) :], strict=True):
            agreed[maker].append(bool((answers.labels[key] == labels).all()))
        return Made(read, answers, new, len(texts), agreed[MODEL], agreed[STUDENT])

    def _audit(self, read: ReadBlock, answers: Answers, rest: NDArray[np.int64]) -> list[tuple[int, str, int]]:
        """Return rows to ask about again: key, text, and who answered.

        That is the student, to this text or to one that counts as the same; or the backbone, to another such text.
        """
        fresh = set(rest.tolist())
        chosen: dict[int, list[tuple[int, str, int]]] = {MODEL: [], STUDENT: []}
        for row, text in read.candidates:
            key = int(read.key_of[row])
            maker = MODEL if key in fresh else int(answers.makers[key])
            is_own = text == read.texts[key] if key in fresh else text_number(text) == answers.texts[key]
            if (maker == STUDENT or not is_own) and len(chosen[maker]) < self._audited:
                chosen[maker].append((key, text, maker))
        return [*chosen[MODEL], *chosen[STUDENT]]

    def store(self, made: Made, dropped: Sequence[str]) -> Shard:
        """Write a shard, its manifest last; then remove answers that are not used again.

        Raises:
            OSError: it cannot be written.
        """
        begun = time.perf_counter()
        folder, read = self._folder, made.read
        name, source = read.block.name, read.block.source.shown
        path = folder.answers(name)
        classified, without = self._writer.write(path, read, made.answers)
        bad = [*read.bad, *without]
        aside = folder.quarantine(name)
        write_quarantine(aside, source, bad)
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
            aside=os.stat(aside).st_size if bad else 0,
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
    is_joined = command.is_joined and command.backend == "local"  # on Ray each block is answered by itself
    return Maker(folder, answerer, writer, table, is_joined, job.audited)
