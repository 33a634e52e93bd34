"""What `cuecraft classify` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from cuecraft.bulk.agreement import Drift, Sampled
from cuecraft.bulk.folder import SUMMARY, JobFolder
from cuecraft.bulk.job import ClassifyCommand, Job, make_job
from cuecraft.bulk.making import maker_of
from cuecraft.bulk.pipeline import Pipeline, check_bad
from cuecraft.bulk.preparing import prepare, prepared
from cuecraft.bulk.progress import Progress
from cuecraft.bulk.table import AnswerTable
from cuecraft.errors import BulkError, StoppedError
from cuecraft.serve.registry import AnyShelf
from cuecraft.serve.setup import ServeSettings, load_listed, open_shelf
from cuecraft.signals import Stop
from cuecraft.storage import FolderInUseError, locked, write_text


def settings_of(command: ClassifyCommand) -> ServeSettings:
    """Return what is loaded: prompts over one backbone, as a server has them."""
    names = ("prompts", "model", "device", "dtype", "local_files_only")
    return ServeSettings.model_validate({name: getattr(command, name) for name in names})


def run_classify(
    command: ClassifyCommand, told: Callable[[Progress], None], stopping: Callable[[], None]
) -> dict[str, Any]:
    """Classify inputs into a folder; return what was read, classified and put aside, and how.

    Args:
        command: what is asked for.
        told: called with how far it has come.
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
    job = make_job(command, [prompt.task.template.field_names for prompt in listed], stop)
    for prompt in listed:
        prompt.example(dict.fromkeys(job.wanted.fields, "a"))  # raises where the fields are not the prompt's
    versions = {prompt.name: prompt.version for prompt in listed}
    identity = job.identity(versions, backbone, threads)
    folder = JobFolder(command.out, f".{command.output}")
    folder.check(identity, command.resume)
    shelf = open_shelf(settings)
    try:
        with locked(command.out), stop.listening():
            shelf.use_threads(folder.begun(identity)["threads"])  # answers may differ in their last bits otherwise
            progress = Progress(sum(source.size for source in job.sources), told)
            seconds = _run(job, folder, shelf, progress)
            return _finished(job, folder, progress, seconds)
    except StoppedError:
        raise StoppedError(stop.signal) from None
    except FolderInUseError:
        raise BulkError(f"{command.out}: another process works here; wait for it, or choose another --out") from None
    except OSError as error:
        raise BulkError(
            f"{command.out}: cannot be written ({error.strerror or error}); what is finished is kept: free space and "
            "go on with --resume"
        ) from error


def _run(job: Job, folder: JobFolder, shelf: AnyShelf[Any], progress: Progress) -> dict[str, float]:
    """Make all shards; return the seconds of each stage."""
    table = AnswerTable(job.command.cache_answers, len(shelf.all()))
    maker = maker_of(job, folder, shelf, table)

    def prepared_by(first: Any) -> None:
        if job.command.cascade:
            prepare(job, folder, maker.answerer, first, progress.answering)

    if job.command.backend == "ray":
        from cuecraft.bulk.cluster import run_on_ray

        prepared_by([])
        return run_on_ray(job, folder, progress)
    pipeline = Pipeline(job, folder, maker, table, progress)
    pipeline.run(prepared_by)
    work = maker.answerer.work
    own = {"tokenise": work.seconds_of_tokens, "model": work.seconds_of_model}
    return {name: round(value, 3) for name, value in {**pipeline.seconds, **maker.seconds, **own}.items()}


def _finished(job: Job, folder: JobFolder, progress: Progress, seconds: dict[str, float]) -> dict[str, Any]:
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
