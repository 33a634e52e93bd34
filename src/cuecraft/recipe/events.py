"""What a run tells while it goes on: a file of events, and trackers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cuecraft.errors import RecipeError, RunError
from cuecraft.method import Event
from cuecraft.recipe.schema import Tracker

Started = Callable[[str], Callable[[Event], None]]


class Listener(Protocol):
    """Is told of each step; never affects the result."""

    def note(self, part: str, number: int, event: Event) -> None:
        """Take note of an event.

        Args:
            part: of the run.
            number: of the event in its part, from 0.
            event: JSON-ready.
        """
        ...

    def close(self) -> None:
        """Write what is left to write."""
        ...


class EventFile:
    """`events.jsonl`: every step with the seconds since the session began. A resumed run goes on in the same file.

    Args:
        path: the file.
        session: the how-manieth process works on the run.
    """

    def __init__(self, path: Path, session: int) -> None:
        self._path, self._session, self._begun = path, session, time.monotonic()
        if path.exists():
            _drop_half_line(path)
        self._handle = path.open("a", encoding="utf-8")

    def note(self, part: str, number: int, event: Event) -> None:
        """Write one line."""
        seconds = round(time.monotonic() - self._begun, 3)
        line = {"session": self._session, "seconds": seconds, "part": part, **event}
        try:
            self._handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._handle.flush()
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written ({error.strerror or error}); make room, then go on with --resume"
            ) from error

    def close(self) -> None:
        """Close the file."""
        try:
            self._handle.close()
        except OSError:  # what could not be written was told
            return


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

    def __init__(self, folder: Path) -> None:
        self._writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def note(self, part: str, number: int, event: Event) -> None:
        """Write the numbers of an event."""
        for name, value in _figures(event):
            self._writer.add_scalar(f"{part}/{event.get('phase', 'step')}/{name}", value, number)

    def close(self) -> None:
        """Write what is left to write."""
        self._writer.close()


class MlFlow:
    """Writes figures into an MLflow file store in the run's folder."""

    def __init__(self, folder: Path) -> None:
        # MLflow asks for this of everybody who wants files and not a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        client = _module("mlflow.tracking", "mlflow").MlflowClient
        store = (folder / "mlruns").absolute()
        self._client = client(tracking_uri=store.as_uri())
        found = self._client.get_experiment_by_name("cuecraft")
        experiment = found.experiment_id if found else self._client.create_experiment("cuecraft")
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id

    def note(self, part: str, number: int, event: Event) -> None:
        """Write the numbers of an event."""
        for name, value in _figures(event):
            key = "".join(
                c if c.isalnum() or c in "_-. /" else "_" for c in f"{part}/{event.get('phase', 'step')}/{name}"
            )
            self._client.log_metric(self._run, key, value, step=number)

    def close(self) -> None:
        """End MLflow's run."""
        self._client.set_terminated(self._run)


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
    """Let a file and trackers hear of each step, beside what is shown.

    Args:
        path: of the file of events.
        session: the how-manieth process works on the run.
        trackers: by name.
        shown: is told each part, and returns the listener that shows its steps.
    """
    with ExitStack() as stack:
        listeners: list[Listener] = []
        for make in (lambda folder: EventFile(path, session), *(TRACKERS[name] for name in trackers)):
            listeners.append(make(path.parent))
            stack.callback(listeners[-1].close)

        def started(part: str) -> Callable[[Event], None]:
            show = shown(part)
            count = iter(range(1_000_000_000))

            def tell(event: Event) -> None:
                number = next(count)
                for listener in listeners:
                    listener.note(part, number, event)
                show(event)

            return tell

        yield started
