"""`cuecraft run`: a recipe in a folder of its own, from the start or from where it was stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cuecraft.backbone.load import device_named
from cuecraft.checkpoints import Keeping
from cuecraft.compare.meters import peak_memory
from cuecraft.determinism import deterministic, flags
from cuecraft.errors import CuecraftError, RunError, StoppedError
from cuecraft.machine import describe
from cuecraft.method import Event
from cuecraft.recipe.events import listening
from cuecraft.recipe.jobs import Job, Result, job_of
from cuecraft.recipe.record import EVENTS, STATE, RunFolder, RunRecord, Status
from cuecraft.recipe.schema import CompareRecipe, Recipe, TuneRecipe

Started = Callable[[str], Callable[[Event], None]]


@dataclass(frozen=True)
class Finished:
    """A run that came to its end.

    Args:
        folder: of the run.
        record: what `run.json` holds.
        result: what came of it; None where an earlier process had finished it.
    """

    folder: Path
    record: RunRecord
    result: Result | None


class Stop:
    """Whether the run was asked to stop, and by which signal.

    Args:
        told: is called when it is.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.signal: int | None = None
        self._told = told

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM ask for it; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set signal handlers
            return

        def ask(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number
            self._told()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_folder(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    """Return the folder that a run goes to: as given, or `runs/NAME`, numbered where that is taken by a finished run.

    Raises:
        RunError: an unfinished run of that name is there and `resume` was not said, or something else is.
    """
    folder = out or Path("runs", recipe.name)
    number = 1
    while RunFolder(folder).is_there:
        status = RunFolder(folder).record().status
        if resume:
            following = Path("runs", f"{recipe.name}-{number + 1}")
            if out is not None or status != "finished" or not RunFolder(following).is_there:
                break
        elif status != "finished":
            raise RunError(f"{folder}: is a run that was not finished; go on with --resume, or choose another --out")
        elif out is not None:
            raise RunError(f"{folder}: is a finished run; choose another --out or remove it")
        number += 1
        folder = Path("runs", f"{recipe.name}-{number}")
    return folder


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
        started: is told each part of the work and returns the listener of its events.
        stopping: is told that SIGINT or SIGTERM asked to stop; a second one stops at once.

    Raises:
        CuecraftError: anything that the user can mend. A run that had not begun in earnest is removed.
        StoppedError: SIGINT or SIGTERM asked for it; the state is kept.
    """
    folder = RunFolder(run_folder(recipe, out, resume))
    folder.check_writable()
    job = job_of(recipe, folder.path)
    with folder.locked():
        if folder.is_there and folder.record().status == "finished":
            folder.check_same(recipe)
            return Finished(folder.path, folder.record(), None)
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

    def run(self) -> Finished:
        """Do the work."""
        try:
            with deterministic(self._recipe.seed, self._recipe.threads), self._stop.listening():
                record = self._opened()
                return self._finished(record)
        except CuecraftError as error:
            if self._is_new and not (self._folder.path / STATE).exists() and not self._has_events():
                self._folder.forget()
            else:
                self._close("failed", str(error))
            raise
        except (StoppedError, KeyboardInterrupt) as error:
            if not self._folder.is_there:
                self._folder.forget()
            else:
                self._close("stopped", None)
            raise StoppedError(self._stop.signal or signal.SIGINT) from error

    def _opened(self) -> RunRecord:
        """Read the data and write the record of a run that has begun."""
        data = self._job.data()
        folder, recipe = self._folder, self._recipe
        if self._is_new:
            method = getattr(recipe.tune, "method", "") if isinstance(recipe, TuneRecipe) else recipe.job
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            record = RunRecord(name=recipe.name, status="running", method=method, started=begun, data=data)
            folder.begin(recipe, record)
            return record
        folder.check_same(recipe)
        before = folder.record()
        for name, entry in before.data.items():
            if data.get(name) != entry:
                raise RunError(
                    f"{folder.path}: the data ({name}) changed since the run began; restore it, or begin anew"
                )
        record = before.model_copy(update={"status": "running", "sessions": before.sessions + 1, "error": None})
        folder.write(record)
        return record

    def _finished(self, record: RunRecord) -> Finished:
        """Run the job and write what came of it."""
        folder, recipe = self._folder, self._recipe
        trackers = recipe.trackers
        with listening(folder.path / EVENTS, record.sessions, trackers, self._started) as started:
            device = torch.device(device_named(recipe.model.device))
            with peak_memory(device) as memory:
                result = self._job.run(self._keeping(), started)
            surroundings = folder.environment() | describe(device) | {"determinism": dict(flags())}
            folder.write_environment(surroundings)
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
        return Finished(folder.path, record, result)

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
        """Write that the run is not under way; where that fails too, it stays `running`, which can be resumed."""
        try:
            record = self._folder.record()
            if record.status == "running":
                update = {"status": status, "error": error, "seconds": self._seconds(record)}
                self._folder.write(record.model_copy(update=update))
        except RunError:
            return


def as_expected(recipe: Recipe, metrics: Any) -> bool | None:
    """Tell whether metrics are within the recipe's tolerance of what it expects; None where it expects nothing."""
    if recipe.expect is None or not recipe.expect.metrics:
        return None
    expected, tolerance = recipe.expect.metrics, recipe.expect.tolerance
    # A last digit of floating point is no difference.
    return all(name in metrics and abs(metrics[name] - v) <= tolerance + 1e-9 for name, v in expected.items())
