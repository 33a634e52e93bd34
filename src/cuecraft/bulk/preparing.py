"""Before a job with a cascade: texts of blocks all over the inputs are answered, and a student is fitted on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cuecraft.bulk.answering import Answerer
from cuecraft.bulk.blocks import Block, blocks_of
from cuecraft.bulk.folder import JobFolder
from cuecraft.bulk.job import Job
from cuecraft.bulk.reading import read_block
from cuecraft.bulk.sources import Source
from cuecraft.bulk.student import Student, fit_student
from cuecraft.bulk.table import Answers, undamaged
from cuecraft.storage import parse_json, write_file, write_text

BASE = "base"
_STUDENT, _TOLD = "student.safetensors", "student.json"
_SPREAD = 16  # blocks that the sample comes from


def prepare(
    job: Job, folder: JobFolder, answerer: Answerer, first: Sequence[Block], told: Callable[[int, int], None]
) -> None:
    """Fit the student, unless that was done; its sample's answers are the first that are known.

    Args:
        job: the job.
        folder: where the student is kept.
        answerer: asks the backbone.
        first: the first block of stdin, which can be read once only; empty elsewhere.
        told: called with how many of how many texts are answered.

    Raises:
        StoppedError: asked to stop; what was answered is kept.
        OSError: what is kept cannot be written.
    """
    if folder.state(_TOLD).is_file():
        return
    command = job.command
    texts, keys = _sample(job, first)
    kept = folder.state("sample")
    answers = answerer.answers(texts, kept, told)
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
    told, path = folder.state(_TOLD), folder.state(_STUDENT)
    if not told.is_file():
        return None, None
    with undamaged(told):
        document: dict[str, Any] = parse_json(told.read_text(encoding="utf-8"))
    return Student.load(path) if path.is_file() else None, document


def base_answers(folder: JobFolder) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], Answers] | None:
    """Return the answers that a job begins with; None for none."""
    path = folder.known(BASE)
    return Answers.load(path) if path.is_file() else None


def _sample(job: Job, first: Sequence[Block]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.uint64]]]:
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


def _spread(job: Job, first: Sequence[Block]) -> list[Callable[[], Block | None]]:
    """Return what gives parts of the inputs: evenly spaced ones where any part can be read, else the beginnings."""
    if job.sources[0].is_stream:
        return [partial(next, iter([block]), None) for block in first]
    command, wanted = job.command, job.wanted
    columns = (*wanted.columns, *wanted.keep)
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
