"""A job on this machine: processes read ahead, a thread makes token ids ahead, a thread writes behind the model."""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any

from cuecraft.core.errors import BulkError, StoppedError, named
from cuecraft.serving.bulk.blocks import Block, blocks_of
from cuecraft.serving.bulk.folder import JobFolder, Shard
from cuecraft.serving.bulk.job import BulkJob, JobProgress
from cuecraft.serving.bulk.making import BASE, Made, Maker, base_answers, prepared
from cuecraft.serving.bulk.reading import ReadBlock, end_with_parent, read_block
from cuecraft.serving.bulk.student import Drift
from cuecraft.serving.bulk.table import STUDENT, AnswerBatch, AnswerTable

_WRITES = 2  # shards that may wait to be written
HOPELESS = 100_000  # rows of which not one could be classified, after which a job gives up
JUDGED = 1_000  # rows from which on `max_bad` is looked at before the end


class Pipeline:
    """Runs a job on this machine.

    Args:
        job: the job.
        folder: its folder.
        maker: makes shards.
        table: answers that are known; the maker's.
        progress: called with how far it has come.
    """

    def __init__(
        self, job: BulkJob, folder: JobFolder, maker: Maker, table: AnswerTable, progress: JobProgress
    ) -> None:
        self._job, self._folder, self._maker, self._table, self._progress = job, folder, maker, table, progress
        self._drift = Drift(job.command.promised)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, prepared_by: Callable[[Sequence[Block]], None]) -> None:
        """Make all shards that are not there.

        Args:
            prepared_by: prepares the job, given the first block of stdin where that is read.

        Raises:
            StoppedError: asked to stop.
            BulkError: too many rows are bad, or stdin is not what it was.
            OSError: something cannot be written.
        """
        with ThreadPoolExecutor(1, "cuecraft-writer") as writer, self._readers() as readers:
            blocks = self._prepared(prepared_by)
            writes: deque[Future[Shard]] = deque()
            for item in self._ahead(blocks, readers):
                if isinstance(item, Shard):
                    self._replay(item)
                    continue
                made = self._maker.make(item, self._progress.answering)
                dropped = self._learn(made)
                writes.append(writer.submit(self._maker.store, made, dropped))
                while len(writes) > _WRITES or (writes and writes[0].done()):
                    self._count(writes)
            while writes:
                self._count(writes)

    def _prepared(self, prepare: Callable[[Sequence[Block]], None]) -> Iterator[Block]:
        """Prepare the job; return its blocks."""
        blocks = self._blocks()
        first = list(islice(blocks, 1)) if self._job.sources[0].is_stream else []
        prepare(first)
        self._maker.student = prepared(self._folder)[0]
        base = base_answers(self._folder)
        if base is not None:
            self._table.add(BASE, *base)
        return chain(first, blocks)

    def _blocks(self) -> Iterator[Block]:
        command, wanted = self._job.command, self._job.wanted
        columns = wanted.needed
        for source in self._job.sources:
            yield from blocks_of(source, command.block_bytes, wanted.longest, columns)

    @contextmanager
    def _readers(self) -> Iterator[Executor | None]:
        """Yield processes that read; None where this one does."""
        count = self._job.command.readers
        if count is None:
            is_small = 0 < self._progress.total <= self._job.command.block_bytes
            count = 0 if is_small else os.cpu_count() or 1
        if not count:
            yield None
            return
        # Spawned, not forked: a reader holds neither the model nor its locks, and imports no torch.
        pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=end_with_parent)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ahead(self, blocks: Iterator[Block], readers: Executor | None) -> Iterator[Shard | ReadBlock]:
        """Yield the blocks in order, read, a few in progress ahead of them; of those that are done the manifests."""
        wanted = self._job.wanted
        ahead = 1 + (self._job.command.readers or os.cpu_count() or 1) if readers else 0
        coming: deque[Shard | Future[ReadBlock] | ReadBlock] = deque()
        for block in blocks:
            shard = self._finished(block)
            if shard is not None:
                coming.append(shard)
            else:
                coming.append(readers.submit(read_block, block, wanted) if readers else read_block(block, wanted))
            while len(coming) > ahead:
                yield self._awaited(coming.popleft())
        while coming:
            yield self._awaited(coming.popleft())

    def _awaited(self, item: Shard | Future[ReadBlock] | ReadBlock) -> Shard | ReadBlock:
        if isinstance(item, Shard):
            return item
        begun = time.perf_counter()
        if isinstance(item, Future):
            while not item.done() and not self._job.stop():
                _wait(item)
            if self._job.stop():
                raise StoppedError
            try:
                item = item.result()
            except BrokenExecutor:
                raise BulkError(
                    f"{self._folder.path}: a process that reads was killed, maybe for lack of memory; what is finished "
                    f"is kept: go on with {named('resume')} and option readers=1 or 0"
                ) from None
        self.seconds["wait for readers"] += time.perf_counter() - begun
        self.seconds["read (all readers)"] += item.seconds
        return item

    def _finished(self, block: Block) -> Shard | None:
        shard = self._folder.finished(block)
        if shard is not None and block.piece is not None and shard.size != block.piece.read:
            raise BulkError(f"{block.source.path}: is not what the job was begun with; give the same again")
        return shard

    def _replay(self, shard: Shard) -> None:
        """Take up what a shard that is there has added to what is known."""
        path = self._folder.known(shard.name)
        if path.is_file():
            self._table.add(shard.name, *AnswerBatch.load(path))
        self._noted(shard.student)
        self._progress.add(shard, is_earlier=True)

    def _learn(self, made: Made) -> list[str]:
        """Take up what a new shard adds to what is known; return the shards whose answers were dropped for it."""
        dropped = self._table.add(made.read.block.name, *made.fresh) if self._job.command.is_joined else []
        self._noted(made.by_student)
        return dropped

    def _noted(self, agreed: Sequence[bool]) -> None:
        if self._drift.note(agreed):
            self._maker.student = None
            self._table.drop(STUDENT)

    def _count(self, writes: deque[Future[Shard]]) -> None:
        self._progress.add(writes.popleft().result())
        check_bad(self._progress, self._job.command.max_bad, JUDGED, HOPELESS)


def _wait(item: Future[Any]) -> None:
    """Wait a moment for a future."""
    try:
        item.exception(timeout=0.2)
    except TimeoutError:
        return


def check_bad(progress: JobProgress, most: float | None, least: int, hopeless: int) -> None:
    """Raise BulkError where too many rows were put aside.

    Args:
        progress: what was read.
        most: share of rows that may be put aside; None for any.
        least: rows from which on that is looked at.
        hopeless: rows from which on one at least has to have an answer.
    """
    read, bad = progress.read, progress.quarantined
    if bad == read >= hopeless:
        raise BulkError(f"none of {read:,} rows could be classified ({_told(progress)}); look into quarantine/")
    if most is not None and read >= least and bad > most * read:
        raise BulkError(
            f"{bad:,} of {read:,} rows are bad ({_told(progress)}), and {named('max_bad')} is {most:.4g} of them; "
            "what is finished is kept, look into quarantine/"
        )


def _told(progress: JobProgress) -> str:
    """Return the commonest reasons in a few words."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in progress.reasons.most_common(3))
