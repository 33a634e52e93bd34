"""What a run tells while it goes on: a file of events, and trackers."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cuecraft.errors import RecipeError, RunError
from cuecraft.events import Event, Started
from cuecraft.recipe.schema import Tracker


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
            event: JSON-ready.
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
            raise RunError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from error

    def note(self, part: str, number: int, event: Event) -> None:
        """Write one line."""
        seconds = round(time.monotonic() - self._begun, 3)
        line = {"session": self._session, "seconds": seconds, "part": part, **event}
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
            self._writer.add_scalar(f"{part}/{event.get('phase', 'step')}/{name}", value, number)

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
            key = "".join(
                c if c.isalnum() or c in "_-. /" else "_" for c in f"{part}/{event.get('phase', 'step')}/{name}"
            )
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
                step = event.get("step")
                for listener in listeners:
                    _told(listener, part, step if isinstance(step, int) else number, event)
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
            f"{listener.name}: cannot be written ({error.strerror or error}); free space, then go on with --resume"
        ) from error
