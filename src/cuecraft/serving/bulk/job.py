"""What a job is asked for, what it is made of, and how far it has come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cuecraft.core.errors import BulkError, named
from cuecraft.core.options import Options
from cuecraft.core.signals import Stop
from cuecraft.data.files import Format, check_delimiter
from cuecraft.serving.bulk.blocks import blocks_expected, check_headers
from cuecraft.serving.bulk.choices import Dedupe
from cuecraft.serving.bulk.folder import Shard
from cuecraft.serving.bulk.sources import Source, find_sources
from cuecraft.serving.bulk.texts import Wanted, kept_columns, parsed_template
from cuecraft.task import Task
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.sections import BackboneSection

_ASKED = 64  # rows that an audit may choose from, for each that it asks about: a kind of answer may be rare


class Actors(Options):
    """What reads and answers on Ray."""

    replicas: int = Field(1, ge=1, description="actors, each with the backbone")
    cpus: float = Field(1.0, gt=0, description="cores of one actor; so many threads compute in it")
    gpus: float = Field(0.0, ge=0, description="GPUs of one actor")
    memory_mb: int | None = Field(None, ge=1, description="memory that is set aside for one actor")
    wave: int = Field(64, ge=1, description="with a cascade: shards between two looks at its audit")


class ClassifyCommand(BackboneSection, Options):
    """What `cuecraft classify` was asked for."""

    prompts: dict[str, Path] = Field(description="id -> folder of an artifact or an ensemble")
    inputs: tuple[str, ...] = Field(description="files, folders, globs, or - for stdin")
    out: Path = Field(description="folder of the job")
    fields: tuple[str, ...] = Field((), description="fields that are classified; by default the prompts' own")
    template: str | None = Field(None, description="a text put together of several fields")
    keep: tuple[str, ...] = Field((), description="fields that are written next to the answers")
    format: Format | None = Field(None, description="of the inputs; by default by their endings")
    delimiter: str | None = Field(None, description="between the cells of CSV and TSV; by default comma and tab")
    output: Literal["jsonl", "parquet"] = Field("jsonl", description="of the answers")
    dedupe: Dedupe = Field(Dedupe.EXACT, description="which texts are answered once")
    cascade: bool = Field(False, description="let a student answer what it is sure of")
    agreement: float = Field(0.99, gt=0.5, lt=1, description="of the student's answers with the backbone's")
    max_bad: float | None = Field(None, ge=0, le=1, description="share of rows that may be put aside")
    resume: bool = Field(False, description="go on with the job in the folder")
    backend: Literal["local", "ray"] = Field("local", description="this machine, or actors on Ray")
    block_mb: float = Field(16.0, gt=0, description="megabytes of input for a shard")
    window: int = Field(512, ge=1, description="texts that are sorted by length and answered together")
    longest_row: int = Field(1_000_000, ge=1, description="bytes of a row; longer ones are put aside")
    cache_answers: int = Field(1_000_000, ge=1, description="answers that are kept to be used again")
    audit: int = Field(400, ge=0, description="rows that are asked about again, about, of each kind")
    sample: int = Field(2500, ge=1, description="texts that a student is fitted and calibrated on")
    readers: int | None = Field(None, ge=0, description="processes that read; 0 for none, by default one a core")
    actors: Actors = Field(default_factory=Actors, description="on Ray")

    @property
    def block_bytes(self) -> int:
        """Bytes of input for a shard."""
        return max(1, int(self.block_mb * 1_000_000))

    @property
    def is_joined(self) -> bool:
        """Whether answers are used again."""
        return self.dedupe is not Dedupe.OFF

    @property
    def promised(self) -> float:
        """The share of the student's rows in which all prompts' answers agree, where each prompt's keep `agreement`."""
        return max(0.0, 1 - len(self.prompts) * (1 - self.agreement))

    @property
    def is_audited(self) -> bool:
        """Whether any answer may be another than the backbone's own to that very text."""
        return self.cascade or self.dedupe is Dedupe.TEMPLATE


@dataclass(frozen=True)
class BulkJob:
    """A job, ready to run.

    Args:
        command: what was asked for.
        sources: the inputs.
        wanted: what of a row is classified.
        audited: rows of a shard that are asked about again, of each kind.
        stop: returns whether to stop.
    """

    command: ClassifyCommand
    sources: tuple[Source, ...]
    wanted: Wanted
    audited: int
    stop: Stop

    def identity(self, prompts: Mapping[str, str], backbone: str, threads: int) -> dict[str, Any]:
        """Return what has to be the same for the job to go on, JSON-ready; threads are what it goes on with."""
        command = self.command
        names = "fields template keep output dedupe cascade agreement backend block_mb window longest_row cache_answers"
        options = command.model_dump(mode="json", include={*names.split(), "audit", "sample", "dtype"})
        options["device"] = command.device.partition(":")[0]
        if command.delimiter is not None:
            options["delimiter"] = command.delimiter
        if command.backend == "ray":
            options["wave"] = command.actors.wave
        return {
            "version": 2,
            "prompts": dict(prompts),
            "backbone": backbone,
            "inputs": [source.identity() for source in self.sources],
            "options": options,
            "threads": threads,
        }


def make_job(
    command: ClassifyCommand,
    tasks: Sequence[Task],
    stop: Stop,
    sources: Sequence[Source] | None = None,
) -> BulkJob:
    """Return a job over the inputs that are there.

    Args:
        command: what is asked for.
        tasks: of the prompts.
        stop: returns whether to stop.
        sources: the inputs, where they were found before.

    Raises:
        BulkError: no input, a template that does not parse, fields asked of what has none, or two of one name.
        DataError: an input is an address, or the delimiter cannot be used.
    """
    if command.fields and command.template:
        raise BulkError(
            f"{named('fields')} and {named('template')} were both given; a template names its fields itself"
        )
    has_labels = {name: task.has_labels for name, task in zip(command.prompts, tasks, strict=True)}
    kept_columns(has_labels, command.keep)  # raises where two would have one name
    options = _options(command, has_labels, tasks)
    prompt_fields = [task.template.field_names for task in tasks]
    pieces: tuple[str, ...] = ()
    columns_asked = command.fields or command.template
    columns = command.fields or tuple(dict.fromkeys(name for own in prompt_fields for name in own))
    if command.template is not None:
        columns, pieces = parsed_template(command.template)
    # A field that no template names may be anything; but where one is named by none, another may stand for it.
    used = {name for own in prompt_fields for name in own}
    if not pieces and used <= set(columns):
        columns = tuple(name for name in columns if name in used) or columns
    if sources is None:
        is_structured = bool(columns_asked or command.keep or options)
        delimiter = check_delimiter(command.delimiter)
        sources = find_sources(command.inputs, command.format, is_structured, command.out, delimiter)
        check_headers(sources, (*columns, *command.keep, *(options or ())[:1]))
    for source in sources:
        if source.format is Format.TEXT and (columns_asked or len(columns) > 1 or command.keep or options):
            what = "were asked for" if columns_asked or command.keep else "are what the prompt takes"
            raise BulkError(f"{source.path}: several fields {what}, and lines of text have none; give JSONL or CSV")
    shards = blocks_expected(sources, command.block_bytes)
    audited = -(-command.audit // shards) if command.is_audited else 0
    wanted = Wanted(
        columns=columns,
        pieces=pieces,
        keep=command.keep,
        longest=command.longest_row,
        is_masked=command.dedupe is Dedupe.TEMPLATE,
        is_joined=command.is_joined,
        candidates=audited * _ASKED,
        options=options,
    )
    return BulkJob(command, tuple(sources), wanted, audited, stop)


def _options(command: ClassifyCommand, has_labels: Mapping[str, bool], tasks: Sequence[Task]) -> tuple[str, str] | None:
    """Return the column of the options that rows bring, and the kind of answers that reads them; None for none.

    Raises:
        BulkError: a student is to learn answers that are no labels.
    """
    others = [name for name, own in has_labels.items() if not own]
    if command.cascade and others:
        kind = tasks[list(has_labels).index(others[0])].answers.kind
        raise BulkError(
            f"prompt {others[0]!r} answers with {kind}, and a student ({named('cascade')}) learns labels alone; leave "
            f"{named('cascade')} out"
        )
    kinds = [task.answers.kind for task in tasks if task.answers.asks_options]
    return (AnswerColumns().options, kinds[0]) if kinds else None


@dataclass
class JobProgress:
    """What has been read, classified and put aside so far.

    Args:
        total: bytes of the inputs; 0 where they are not known.
        report: is called when something has changed.
    """

    total: int
    report: Callable[[JobProgress], None] = lambda progress: None
    read: int = 0
    classified: int = 0
    quarantined: int = 0
    keys: int = 0
    computed: int = 0
    size: int = 0
    earlier: int = 0  # bytes that earlier starts of the job have done
    earlier_rows: int = 0
    under_way: tuple[int, int] = (0, 0)  # of the block at hand: texts that are answered, and all
    begun: float = field(default_factory=time.monotonic)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, shard: Shard, is_earlier: bool = False) -> None:
        """Count a shard."""
        self.read += shard.read
        self.classified += shard.classified
        self.quarantined += shard.quarantined
        self.keys += shard.keys
        self.computed += shard.computed
        self.size += shard.size
        self.reasons.update(shard.reasons)
        self.under_way = (0, 0)
        if is_earlier:
            self.earlier += shard.size
            self.earlier_rows += shard.read
            self.begun = time.monotonic()
        self.report(self)

    def answering(self, done: int, of: int) -> None:
        """Take note of how far the backbone has come with the block at hand."""
        self.under_way = (done, of)
        self.report(self)

    @property
    def seconds(self) -> float:
        """Seconds of this start of the job."""
        return max(time.monotonic() - self.begun, 1e-6)

    @property
    def rows_per_second(self) -> float:
        """Rows of this start in a second."""
        return (self.read - self.earlier_rows) / self.seconds

    @property
    def mb_per_second(self) -> float:
        """Megabytes of this start in a second."""
        return (self.size - self.earlier) / self.seconds / 1e6

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at this rate; None where that is not known."""
        done = self.size - self.earlier
        return (self.total - self.size) / done * self.seconds if self.total and done else None
