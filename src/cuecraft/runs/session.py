"""`cuecraft run`: a recipe in a folder of its own, from the start or from where it was stopped.

Its events go to a file and to trackers.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from cuecraft.artifact.manifest import DataEntry
from cuecraft.backbone.load import device_named
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.environment import deterministic
from cuecraft.core.errors import RecipeError, RunError, StoppedError, named
from cuecraft.core.events import Event, Started
from cuecraft.core.signals import Stop
from cuecraft.runs.jobs import Job, job_of
from cuecraft.runs.record import EVENTS, STATE, RunFolder, RunRecord, Status, surroundings_now
from cuecraft.runs.spec import CompareRecipe, Recipe, Tracker, TuneRecipe
from cuecraft.study.compare.trial import peak_memory


class Listener(Protocol):
    """Called with each step; never affects the result."""

    @property
    def name(self) -> str:
        """What cannot be written where it cannot write."""
        ...

    def note(self, part: str, number: int, event: Event) -> None:
        """Take note of an event.

        Args:
            part: of the run.
            number: the event's own step, or how many events of the part were before it.
            event: what happened.
        """
        ...

    def close(self, is_finished: bool) -> None:
        """Write what is left to write; the argument says whether the run came to its end."""
        ...


class EventFile:
    """`events.jsonl`: every step with the seconds since the session began. A resumed run goes on in the same file.

    Args:
        path: the file.
        session: the how-manieth process works on the run.
    """

    def __init__(self, path: Path, session: int) -> None:
        self.name, self._session, self._begun = str(path), session, time.monotonic()
        try:
            if path.exists():
                _drop_half_line(path)
            self._handle = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); choose another {named('out')}"
            ) from error

    def note(self, part: str, number: int, event: Event) -> None:
        """Write one line."""
        seconds = round(time.monotonic() - self._begun, 3)
        line = {"session": self._session, "seconds": seconds, "part": part, **event.document()}
        self._handle.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._handle.flush()

    def close(self, is_finished: bool) -> None:
        """Close the file."""
        self._handle.close()


def _drop_half_line(path: Path) -> None:
    """Cut a line off that a killed process left half-written."""
    with path.open("rb+") as handle:
        content = handle.read()
        handle.truncate(content.rfind(b"\n") + 1)


def _figures(event: Event) -> Iterator[tuple[str, float]]:
    for name, value in event.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "total"):
            yield name, float(value)


class TensorBoard:
    """Writes figures for TensorBoard."""

    name = "trackers: tensorboard"

    def __init__(self, folder: Path) -> None:
        self._writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def note(self, part: str, number: int, event: Event) -> None:
        """Write the numbers of an event."""
        for name, value in _figures(event):
            self._writer.add_scalar(f"{part}/{event.phase}/{name}", value, number)

    def close(self, is_finished: bool) -> None:
        """Write what is left to write."""
        self._writer.close()


class MlFlow:
    """Writes figures into an MLflow file store in the run's folder."""

    name = "trackers: mlflow"

    def __init__(self, folder: Path) -> None:
        # MLflow asks for this of everybody who wants files and not a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        client = _module("mlflow.tracking", "mlflow").MlflowClient
        store = (folder / "mlruns").absolute()
        self._client = client(tracking_uri=store.as_uri())
        found = self._client.get_experiment_by_name("cuecraft")
        experiment = found.experiment_id if found else self._client.create_experiment("cuecraft")
        # The store is this run's own, so what is in it was begun by an earlier session.
        begun = self._client.search_runs([experiment])
        run = begun[0] if begun else self._client.create_run(experiment, run_name=folder.name)
        self._run = run.info.run_id

    def note(self, part: str, number: int, event: Event) -> None:
        """Write the numbers of an event."""
        for name, value in _figures(event):
            key = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in f"{part}/{event.phase}/{name}")
            self._client.log_metric(self._run, key, value, step=number)

    def close(self, is_finished: bool) -> None:
        """End MLflow's run."""
        self._client.set_terminated(self._run, "FINISHED" if is_finished else "KILLED")


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"trackers: {package} is not installed ({error}); pip install 'cuecraft[{package}]', or leave it out"
        ) from error


TRACKERS: Mapping[Tracker, Callable[[Path], Listener]] = {"tensorboard": TensorBoard, "mlflow": MlFlow}


@contextmanager
def listening(path: Path, session: int, trackers: Sequence[Tracker], shown: Started) -> Iterator[Started]:
    """Let a file and trackers hear of each step, in addition to what is shown.

    Args:
        path: of the file of events.
        session: the how-manieth process works on the run.
        trackers: by name.
        shown: called with each part, and returns the listener that shows its steps.
    """
    listeners: list[Listener] = []
    is_finished = False
    try:
        listeners.append(EventFile(path, session))
        listeners += [TRACKERS[name](path.parent) for name in trackers]

        def started(part: str) -> Callable[[Event], None]:
            show, count = shown(part), itertools.count()

            def tell(event: Event) -> None:
                number = next(count)
                for listener in listeners:
                    _told(listener, part, number if event.step is None else event.step, event)
                show(event)

            return tell

        yield started
        is_finished = True
    finally:
        for listener in listeners:
            with suppress(OSError):  # what could not be written was reported
                listener.close(is_finished)


def _told(listener: Listener, part: str, number: int, event: Event) -> None:
    """Let a listener take note of an event.

    Raises:
        RunError: it cannot write.
    """
    try:
        listener.note(part, number, event)
    except OSError as error:
        raise RunError(
            f"{listener.name}: cannot be written ({error.strerror or error}); free space, then go on with "
            f"{named('resume')}"
        ) from error


@dataclass(frozen=True)
class Finished:
    """A run that came to its end.

    Args:
        folder: of the run.
        record: what `run.json` holds.
        is_earlier: whether another process had finished it before.
    """

    folder: Path
    record: RunRecord
    is_earlier: bool = False


def run_folder(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    """Return the folder that a run goes to: as given, or `runs/NAME`, numbered where that is taken by a finished run.

    Raises:
        RunError: an unfinished run of that name is there and `resume` was not said, or something else is.
    """
    unfinished = f"is a run that was not finished; go on with {named('resume')}, or choose another {named('out')}"
    if out is not None:
        if RunFolder(out).is_there and not resume:
            is_finished = RunFolder(out).record().status == "finished"
            finished = f"is a finished run; choose another {named('out')} or remove it"
            how = finished if is_finished else unfinished
            raise RunError(f"{out}: {how}")
        return out
    latest: Path | None = None
    for number in itertools.count(1):
        folder = Path("runs", recipe.name if number == 1 else f"{recipe.name}-{number}")
        found = RunFolder(folder)
        if found.is_there:
            latest = folder
            if found.record().status != "finished":
                break
        elif not found.is_taken:  # by something else, such as what `make demo` leaves
            return latest if resume and latest is not None else folder
    if not resume:
        raise RunError(f"{latest}: {unfinished}")
    assert latest is not None
    return latest


def run_recipe(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    started: Started = lambda name: lambda event: None,
    stopping: Callable[[], None] = lambda: None,
) -> Finished:
    """Run a recipe.

    Args:
        recipe: what to do.
        out: folder of the run; by default `runs/NAME`.
        resume: go on with a run that was stopped or killed; begin one where there is none.
        started: called with each part of the work and returns the listener of its events.
        stopping: called when SIGINT or SIGTERM asked to stop; a second one stops at once.

    Raises:
        CuecraftError: anything that the user can fix. A run that had not begun in earnest is removed.
        StoppedError: SIGINT or SIGTERM asked for it; the state is kept.
    """
    folder = RunFolder(run_folder(recipe, out, resume))
    folder.check_writable()
    job = job_of(recipe, folder.path)
    with folder.locked():
        if folder.is_there and folder.record().status == "finished":
            folder.check_same(recipe)
            return Finished(folder.path, folder.record(), is_earlier=True)
        return _Session(folder, recipe, job, started, Stop(stopping)).run()


class _Session:
    """One process's work on a run.

    Args:
        folder: of the run, locked.
        recipe: what to do.
        job: the same, in that folder.
        started: shows the work.
        stop: whether it was asked to stop.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, job: Job, started: Started, stop: Stop) -> None:
        self._folder, self._recipe, self._job, self._started, self._stop = folder, recipe, job, started, stop
        self._begun = time.monotonic()
        self._is_new = not folder.is_there

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(device_named(self._recipe.model.device))

    def run(self) -> Finished:
        """Do the work."""
        try:
            # As many threads as when it began: their number decides the last digits of a sum.
            threads = self._recipe.threads if self._is_new else self._folder.surroundings().threads
            with deterministic(self._recipe.seed, threads), self._stop.listening():
                return self._finished(self._opened())
        except (StoppedError, KeyboardInterrupt) as error:
            if self._folder.is_there:
                self._close("stopped", None)
            else:
                self._folder.forget()
            raise StoppedError(self._stop.signal or signal.SIGINT) from error
        except BaseException as error:
            if self._is_new and not (self._folder.path / STATE).exists() and not self._has_events():
                self._folder.forget()
            else:
                self._close("failed", str(error) or type(error).__name__)
            raise

    def _opened(self) -> RunRecord:
        """Read the data and write the record of a run that has begun."""
        folder, recipe = self._folder, self._recipe
        if not self._is_new:
            folder.check_same(recipe)
        data = self._job.data()
        now = surroundings_now(recipe, self._device)
        if self._is_new:
            method = getattr(recipe.tune, "method", "") if isinstance(recipe, TuneRecipe) else recipe.job
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            record = RunRecord(name=recipe.name, status="running", method=method, started=begun, data=data)
            folder.begin(recipe, now, record)
            return record
        before = folder.record()
        self._check_data(before, data, "since the run began; restore it, or begin again")
        first = folder.surroundings()
        if first.model_copy(update={"later": []}) != now:
            folder.write_surroundings(first.model_copy(update={"later": [*first.later, now]}))
        record = before.model_copy(update={"status": "running", "sessions": before.sessions + 1, "error": None})
        folder.write(record)
        return record

    def _check_data(self, record: RunRecord, data: Mapping[str, DataEntry], when: str) -> None:
        """Raise RunError where the data is not what the run began with."""
        for name in {**record.data, **data}:
            if record.data.get(name) != data.get(name):
                raise RunError(f"{self._folder.path}: the data ({name}) changed {when}")

    def _finished(self, record: RunRecord) -> Finished:
        """Run the job and write what came of it."""
        folder, recipe = self._folder, self._recipe
        with listening(folder.path / EVENTS, record.sessions, recipe.trackers, self._started) as started:
            with peak_memory(self._device) as memory:
                result = self._job.run(self._keeping(), started)
            # It was read more than once.
            self._check_data(record, self._job.data(), "while it ran; begin again")
        record = record.model_copy(
            update={
                "status": "finished",
                "seconds": self._seconds(record),
                "backbone": result.backbone,
                "metrics": dict(result.metrics),
                "artifacts": dict(result.artifacts),
                "peak_bytes": memory.peak,
                "as_expected": as_expected(recipe, result.metrics),
            }
        )
        folder.write(record)
        return Finished(folder.path, record)

    def _keeping(self) -> Keeping:
        recipe, state = self._recipe, self._folder.path / STATE
        if isinstance(recipe, CompareRecipe):
            return Keeping(state, stop=self._stop)
        return Keeping(state, recipe.checkpoint.steps, recipe.checkpoint.seconds, self._stop)

    def _seconds(self, record: RunRecord) -> float:
        return round(record.seconds + time.monotonic() - self._begun, 2)

    def _has_events(self) -> bool:
        path = self._folder.path / EVENTS
        return path.exists() and path.stat().st_size > 0

    def _close(self, status: Status, error: str | None) -> None:
        """Write that the run is not in progress; where that fails too, it stays `running`, which can be resumed."""
        try:
            record = self._folder.record()
            if record.status == "running":
                if error is not None:  # it may name a path that is not UTF-8, and the record is
                    error = error.encode("utf-8", "backslashreplace").decode()
                update = {"status": status, "error": error, "seconds": self._seconds(record)}
                self._folder.write(record.model_copy(update=update))
        except RunError:
            return


def as_expected(recipe: Recipe, metrics: Any) -> bool | None:
    """Return whether metrics are within the recipe's tolerance of what it expects; None where it expects nothing."""
    if recipe.expect is None or not recipe.expect.metrics:
        return None
    expected, tolerance = recipe.expect.metrics, recipe.expect.tolerance
    # A last digit of floating point is no difference.
    return all(name in metrics and abs(metrics[name] - v) <= tolerance + 1e-9 for name, v in expected.items())
