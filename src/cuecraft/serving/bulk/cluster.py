"""What `cuecraft classify` does on one machine, and on Ray Data with actors that read, answer and write blocks.

Ray's own readers of JSON lose a block, or the job, for one bad line. So what Ray Data hands around is where a block
lies, and an actor reads and parses it as this machine would. A shard counts by its manifest alone: where an actor dies,
Ray gives its block to another one, which goes on with the windows that are on the disk.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from cuecraft.core.errors import BulkError, StoppedError, named
from cuecraft.core.signals import Stop
from cuecraft.core.storage import FolderInUseError, locked, write_text
from cuecraft.serving.bulk.blocks import Block, blocks_of
from cuecraft.serving.bulk.folder import SUMMARY, JobFolder, Shard
from cuecraft.serving.bulk.job import BulkJob, ClassifyCommand, JobProgress, make_job
from cuecraft.serving.bulk.making import maker_of, prepare, prepared, table_of
from cuecraft.serving.bulk.pipeline import HOPELESS, JUDGED, Pipeline, check_bad
from cuecraft.serving.bulk.sources import Source
from cuecraft.serving.bulk.student import Drift, Sampled
from cuecraft.serving.registry import AnyShelf
from cuecraft.serving.setup import ServeSettings, load_listed, open_shelf


def run_on_ray(job: BulkJob, folder: JobFolder, progress: JobProgress) -> dict[str, float]:
    """Make all shards that are not there, on the cluster that RAY_ADDRESS names or on one of this machine alone.

    Raises:
        StoppedError: asked to stop.
        BulkError: Ray is not installed or cannot do it, stdin is asked for, or too many rows are bad.
    """
    if find_spec("ray") is None:
        raise BulkError("the Ray backend needs Ray: pip install 'cuecraft[ray]'")
    if job.sources[0].is_stream:
        raise BulkError("actors cannot read this process's stdin or pipes; name files on a disk that all nodes share")
    import ray

    try:
        ray.init(include_dashboard=False, log_to_driver=False, namespace="cuecraft")
        with job.stop.listening():  # after Ray's start, which takes the signals for itself
            _run_waves(job, folder, progress)
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        cause = getattr(error, "cause", None) or error
        raise BulkError(
            f"{folder.path}: Ray could not go on ({' '.join(str(cause).split())[-300:]}); what is finished is kept: "
            f"fix that and go on with {named('resume')}"
        ) from error
    finally:
        if ray.is_initialized():
            ray.shutdown()
    return {}


def _run_waves(job: BulkJob, folder: JobFolder, progress: JobProgress) -> None:
    """Make shards wave after wave: with a cascade, what the audit of one says counts for the next."""
    drift = Drift(job.command.promised)
    for shard in folder.shards():
        progress.add(shard, is_earlier=True)
    units = _units(job)
    while wave := list(islice(units, job.command.actors.wave if job.command.cascade else None)):
        open_units = [unit for unit in wave if unit.stop == 0 or folder.finished(unit) is None]
        if open_units:
            _run_wave(job, folder, open_units, not drift.is_drifting, progress)
        for shard in _shards_of(folder, wave):
            drift.note(shard.student)


def _units(job: BulkJob) -> Iterator[Block]:
    """Yield what an actor gets at once: a block where it can be read by itself, else a whole input (a stop of 0)."""
    for source in job.sources:
        if source.is_split:
            yield from blocks_of(source, job.command.block_bytes, job.wanted.longest, job.wanted.needed)
        else:
            yield Block(source, 0)


def _shards_of(folder: JobFolder, wave: Sequence[Block]) -> Iterator[Shard]:
    names = [f"{unit.source.number:05d}-*" if unit.stop == 0 else unit.name for unit in wave]
    for name in names:
        for path in sorted(folder.manifest("x").parent.glob(f"part-{name}.json")):
            yield Shard.read_from(path)


def _run_wave(job: BulkJob, folder: JobFolder, units: Sequence[Block], is_taught: bool, progress: JobProgress) -> None:
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    actors = job.command.actors
    memory = {"memory": actors.memory_mb * 2**20} if actors.memory_mb else {}
    rows = [
        {"source": unit.source.number, "number": unit.number, "start": unit.start, "stop": unit.stop} for unit in units
    ]
    earlier = {shard.name for shard in folder.shards()}  # an actor passes by those of a file that it gets as a whole
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors.replicas),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        fn_constructor_kwargs={
            "command": job.command.model_dump_json(),
            "sources": job.sources,
            "folder": str(folder.path.absolute()),
            "cwd": os.getcwd(),
            "is_taught": is_taught,
        },
        **memory,
    )
    for row in made.iter_rows():
        if row["shard"] not in earlier:
            progress.add(Shard.read_from(folder.manifest(row["shard"])))
        check_bad(progress, job.command.max_bad, JUDGED, HOPELESS)
        if job.stop():
            raise StoppedError


class Actor:
    """What reads, answers and writes blocks by itself.

    Args:
        command: `ClassifyCommand`, as JSON.
        sources: the inputs, as the driver found them.
        folder: of the job.
        cwd: what paths are relative to.
        is_taught: whether the student answers what it is sure of.
    """

    def __init__(self, command: str, sources: Sequence[Source], folder: str, cwd: str, is_taught: bool) -> None:
        os.chdir(cwd)
        from cuecraft.serving.bulk.making import BASE, base_answers
        from cuecraft.serving.setup import open_shelf

        own = ClassifyCommand.model_validate_json(command)
        shelf = open_shelf(settings_of(own))
        shelf.use_threads(max(1, round(own.actors.cpus)))
        self._job = make_job(own, [prompt.task for prompt in shelf.all()], Stop(), sources)
        self._folder = JobFolder(Path(folder), f".{own.output}")
        table = table_of(self._job, shelf)
        base = base_answers(self._folder)
        if base is not None:
            table.add(BASE, *base)
        self._maker = maker_of(self._job, self._folder, shelf, table)
        self._maker.student = prepared(self._folder)[0] if is_taught else None

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        """Make the shards of one unit; yield their names."""
        number, block, start, stop = (int(batch[name][0]) for name in ("source", "number", "start", "stop"))
        for own in self._blocks(self._job.sources[number], block, start, stop):
            if self._folder.finished(own) is None:
                self._make(own)
            yield {"shard": [own.name]}

    def _blocks(self, source: Source, number: int, start: int, stop: int) -> Iterator[Block]:
        if stop:
            return iter([Block(source, number, start, stop)])
        wanted = self._job.wanted
        return blocks_of(source, self._job.command.block_bytes, wanted.longest, wanted.needed)

    def _make(self, block: Block) -> None:
        from cuecraft.serving.bulk.reading import read_block

        self._maker.store(self._maker.make(read_block(block, self._job.wanted), lambda done, of: None), ())


def settings_of(command: ClassifyCommand) -> ServeSettings:
    """Return what is loaded: prompts over one backbone, as a server has them."""
    names = ("prompts", "model", "device", "dtype", "local_files_only")
    return ServeSettings.model_validate({name: getattr(command, name) for name in names})


def run_classify(
    command: ClassifyCommand, report: Callable[[JobProgress], None], stopping: Callable[[], None]
) -> dict[str, Any]:
    """Classify inputs into a folder; return what was read, classified and put aside, and how.

    Args:
        command: what is asked for.
        report: called with how far it has come.
        stopping: is called when a signal has asked to stop.

    Raises:
        BulkError: an extra is missing, there is no input, the folder cannot be used or written, or too many rows are
            bad.
        CuecraftError: an artifact or the backbone cannot be used.
        StoppedError: stopped by a signal, its number the argument; with `resume` the job goes on.
    """
    if find_spec("orjson") is None:
        raise BulkError("classifying files needs further packages: pip install 'cuecraft[bulk]'")
    settings = settings_of(command)
    listed, backbone, threads = load_listed(settings)
    stop = Stop(stopping)
    job = make_job(command, [prompt.task for prompt in listed], stop)
    for prompt in listed:
        prompt.example(job.wanted.sample)  # raises where the fields are not the prompt's
    versions = {prompt.name: prompt.version for prompt in listed}
    identity = job.identity(versions, backbone, threads)
    folder = JobFolder(command.out, f".{command.output}")
    folder.check(identity, command.resume)
    shelf = open_shelf(settings)
    try:
        with locked(command.out), stop.listening():
            shelf.use_threads(folder.begun(identity)["threads"])  # answers may differ in their last bits otherwise
            progress = JobProgress(sum(source.size for source in job.sources), report)
            seconds = _run(job, folder, shelf, progress)
            return _finished(job, folder, progress, seconds)
    except StoppedError:
        raise StoppedError(stop.signal) from None
    except FolderInUseError:
        raise BulkError(
            f"{command.out}: another process works here; wait for it, or choose another {named('out')}"
        ) from None
    except OSError as error:
        raise BulkError(
            f"{command.out}: cannot be written ({error.strerror or error}); what is finished is kept: free space and "
            f"go on with {named('resume')}"
        ) from error


def _run(job: BulkJob, folder: JobFolder, shelf: AnyShelf[Any], progress: JobProgress) -> dict[str, float]:
    """Make all shards; return the seconds of each stage."""
    table = table_of(job, shelf)
    maker = maker_of(job, folder, shelf, table)

    def prepared_by(first: Any) -> None:
        if job.command.cascade:
            prepare(job, folder, maker.answerer, first, progress.answering)

    if job.command.backend == "ray":
        pass

        prepared_by([])
        return run_on_ray(job, folder, progress)
    pipeline = Pipeline(job, folder, maker, table, progress)
    pipeline.run(prepared_by)
    work = maker.answerer.work
    own = {"tokenise": work.seconds_of_tokens, "model": work.seconds_of_model}
    return {name: round(value, 3) for name, value in {**pipeline.seconds, **maker.seconds, **own}.items()}


def _finished(job: BulkJob, folder: JobFolder, progress: JobProgress, seconds: dict[str, float]) -> dict[str, Any]:
    """Check the sums; write and return what came of the job."""
    check_bad(progress, job.command.max_bad, 1, 1)
    template, student, drift = Sampled(), Sampled(), Drift(job.command.promised)
    shards = taught = keys = computed = 0
    totals = [0, 0, 0]
    for shard in folder.shards():
        template, student = template + shard.by_template, student + shard.by_student
        drift.note(shard.student)
        shards += 1
        taught, keys, computed = taught + shard.taught, keys + shard.keys, computed + shard.computed
        for place, count in enumerate((shard.read, shard.classified, shard.quarantined)):
            totals[place] += count
    read, classified, quarantined = totals
    if read != classified + quarantined:
        raise BulkError(
            f"{folder.path}: {read} rows were read, but {classified} and {quarantined} written; report this"
        )
    _, told = prepared(folder)
    document = {
        "read": read,
        "classified": classified,
        "quarantined": quarantined,
        "reasons": dict(progress.reasons.most_common()),
        "changed": [source.shown for source in job.sources if source.has_changed()],
        "out": str(folder.path),
        "shards": shards,
        "distinct": keys,
        "computed": computed + (told["sample"] if told else 0),
        "taught": taught,
        "agreement": {"template": template.document(), "cascade": student.document()},
        "cascade": told and told | {"fell_back": drift.is_drifting},
        "seconds": round(progress.seconds, 3),
        "rows_per_second": round(progress.rows_per_second, 1),
        "mb_per_second": round(progress.mb_per_second, 3),
        "stages": seconds,
    }
    write_text(folder.path / SUMMARY, json.dumps(document, indent=1) + "\n")
    folder.clean()
    return document
