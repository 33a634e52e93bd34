"""From a block that was read to a shard: known answers, the student's, the backbone's; the audit; and onto the disk.

Before a job with a cascade, texts of blocks all over the inputs are answered, and a student is fitted on them.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.core.storage import parse_json, write_file, write_text
from cuecraft.serving.bulk.answering import Answerer
from cuecraft.serving.bulk.blocks import Block, blocks_of
from cuecraft.serving.bulk.folder import JobFolder, Shard, Writer, write_quarantine
from cuecraft.serving.bulk.job import BulkJob
from cuecraft.serving.bulk.reading import Keys, ReadBlock, read_block, text_number
from cuecraft.serving.bulk.sources import Source
from cuecraft.serving.bulk.student import Student, fit_student
from cuecraft.serving.bulk.table import MODEL, STUDENT, AnswerBatch, AnswerTable, undamaged
from cuecraft.serving.registry import AnyShelf

BASE = "base"
_STUDENT, _TOLD = "student.safetensors", "student.json"
_SPREAD = 16  # blocks that the sample comes from


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
    answers: AnswerBatch
    new: NDArray[np.int64]
    computed: int
    by_template: list[bool]
    by_student: list[bool]

    @property
    def fresh(self) -> tuple[Keys, AnswerBatch]:
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

    def make(self, read: ReadBlock, report: Callable[[int, int], None]) -> Made:
        """Answer a block; `report` is called with how many of how many texts the backbone has answered for it.

        Raises:
            StoppedError: asked to stop.
            OSError: what is kept on the way cannot be written.
        """
        begun = time.perf_counter()
        answers = self.answerer.empty(len(read.keys))
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
        computed = self.answerer.answers(texts, self._folder.state(read.block.name), report)
        own_rows = np.arange(len(rest))
        answers.put(rest, computed.at(own_rows))
        agreed: dict[int, list[bool]] = {MODEL: [], STUDENT: []}
        for row, (key, _, maker) in enumerate(audit, start=len(rest)):
            agreed[maker].append(answers.agree(key, computed, row))
        return Made(read, answers, new, len(texts), agreed[MODEL], agreed[STUDENT])

    def _audit(self, read: ReadBlock, answers: AnswerBatch, rest: NDArray[np.int64]) -> list[tuple[int, str, int]]:
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


def maker_of(job: BulkJob, folder: JobFolder, shelf: AnyShelf[Any], table: AnswerTable) -> Maker:
    """Return what makes the shards of a job with the prompts of `shelf`."""
    command, served = job.command, shelf.all()
    answerer = Answerer(shelf, job.wanted, command.window, job.stop)
    classes = {own.name: own.task.verbalizer.classes if own.task.has_labels else None for own in served}
    writer = Writer(classes, command.keep, command.output)
    is_joined = command.is_joined and command.backend == "local"  # on Ray each block is answered by itself
    return Maker(folder, answerer, writer, table, is_joined, job.audited)


def table_of(job: BulkJob, shelf: AnyShelf[Any]) -> AnswerTable:
    """Return space for the answers that a job uses again."""
    tasks = [prompt.task for prompt in shelf.all()]
    return AnswerTable(job.command.cache_answers, len(tasks), sum(not task.has_labels for task in tasks))


def prepare(
    job: BulkJob, folder: JobFolder, answerer: Answerer, first: Sequence[Block], report: Callable[[int, int], None]
) -> None:
    """Fit the student, unless that was done; its sample's answers are the first that are known.

    Args:
        job: the job.
        folder: where the student is kept.
        answerer: asks the backbone.
        first: the first block of stdin, which can be read once only; empty elsewhere.
        report: called with how many of how many texts are answered.

    Raises:
        StoppedError: asked to stop; what was answered is kept.
        OSError: what is kept cannot be written.
    """
    if folder.state(_TOLD).is_file():
        return
    command = job.command
    texts, keys = _sample(job, first)
    kept = folder.state("sample")
    answers = answerer.answers(texts, kept, report)
    usable = np.flatnonzero((answers.labels >= 0).all(1))
    names = [served.name for served in answerer.prompts]
    own = [texts[row] for row in usable]
    fitted = fit_student(own, answers.at(usable), names, command.agreement, job.wanted.is_masked)
    if job.command.is_joined:
        write_file(folder.known(BASE), lambda scratch: answers.save(scratch, keys))
    if fitted.student is not None:
        write_file(folder.state(_STUDENT), fitted.student.save)
    write_text(folder.state(_TOLD), json.dumps(fitted.document, ensure_ascii=False) + "\n")
    answerer.forget(kept)


def prepared(folder: JobFolder) -> tuple[Student | None, dict[str, Any] | None]:
    """Return the student of a job, None where it cannot keep its word or there is none, and what is reported of it.

    Raises:
        BulkError: one of them is damaged.
    """
    found, path = folder.state(_TOLD), folder.state(_STUDENT)
    if not found.is_file():
        return None, None
    with undamaged(found):
        document: dict[str, Any] = parse_json(found.read_text(encoding="utf-8"))
    return Student.load(path) if path.is_file() else None, document


def base_answers(folder: JobFolder) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], AnswerBatch] | None:
    """Return the answers that a job begins with; None for none."""
    path = folder.known(BASE)
    return AnswerBatch.load(path) if path.is_file() else None


def _sample(job: BulkJob, first: Sequence[Block]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.uint64]]]:
    """Return distinct texts, as far as texts that count as one are one, from blocks all over the inputs, with keys."""
    size = job.command.sample
    parts = _spread(job, first)
    each = -(-size // max(1, len(parts)))
    texts: list[str] = []
    keys: dict[bytes, None] = {}
    for number, part in enumerate(parts, start=1):
        if len(texts) >= size:
            break
        block = part()  # one at a time: of a packed file it is all bytes of the block
        if block is None:
            continue
        read = read_block(block, job.wanted)
        # What one block lacks the next ones may have.
        for key, text in zip(read.keys, read.texts, strict=True):
            if len(texts) >= min(size, each * number):
                break
            if key.tobytes() not in keys:
                keys[key.tobytes()] = None
                texts.append(text)
    return texts, np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)


def _spread(job: BulkJob, first: Sequence[Block]) -> list[Callable[[], Block | None]]:
    """Return what gives parts of the inputs: evenly spaced ones where any part can be read, else the beginnings."""
    if job.sources[0].is_stream:
        return [partial(next, iter([block]), None) for block in first]
    command, wanted = job.command, job.wanted
    columns = wanted.needed
    of = len(job.sources)
    sources = [job.sources[n] for n in np.linspace(0, of - 1, min(of, _SPREAD), dtype=int).tolist()]
    total = sum(source.size for source in sources)
    parts: list[Callable[[], Block | None]] = []
    for source in sources:
        part = command.block_bytes
        if source.is_split:
            count = max(1, round(_SPREAD * source.size / max(1, total)))
            starts = dict.fromkeys(np.linspace(0, max(0, source.size - part), count, dtype=int).tolist())
            parts += [partial(Block, source, 0, start, min(start + part, source.size)) for start in starts]
        else:
            parts.append(partial(_beginning, source, part, wanted.longest, columns))
    return parts


def _beginning(source: Source, size: int, longest: int, columns: Sequence[str]) -> Block | None:
    """Return the first block of an input; None for an empty one."""
    return next(blocks_of(source, size, longest, columns), None)
