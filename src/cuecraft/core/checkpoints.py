"""The state of unfinished trainings and searches on disk, and stopping by a signal: a run goes on where it stood."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cuecraft.core.errors import MethodError, StoppedError
from cuecraft.core.storage import SCRATCH, parse_json, write_file

_DOCUMENT, _ENDING = "document", ".safetensors"
_SHARE = 20  # times as long as a state took to write, at least, until the next one


@dataclass(frozen=True)
class Keeping:
    """Where and how often a run keeps the state of what is not finished.

    Args:
        folder: made when the first state is saved.
        steps: training batches or search steps between two states, at least.
        seconds: between two states, at least.
        stop: whether the run was asked to stop; it does so once its state is kept.
    """

    folder: Path
    steps: int = 1
    seconds: float = 5.0
    stop: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, where: str | Path | Keeping) -> Keeping:
        """Return it of a folder alone, with everything else as usual; or as it is."""
        return where if isinstance(where, Keeping) else cls(Path(where))

    def within(self, name: str) -> Keeping:
        """Return the same in a folder of this one."""
        return replace(self, folder=self.folder / name)


class Checkpoints:
    """A folder with the states of one run's trainings and searches.

    Args:
        keeping: where and how often they are kept.
        key: hash of all that the run depends on; states of another key are refused.
    """

    def __init__(self, keeping: Keeping, key: str) -> None:
        self._keeping = keeping
        self._key = key
        self._count = 0

    def within(self, name: str) -> Checkpoints:
        """Return a folder of their own for some trainings, which may be taken in another order, or not at all."""
        return Checkpoints(self._keeping.within(name), self._key)

    def slot(self, name: str) -> Slot:
        """Return the place of the run's next training or search; a run takes them in the same order each time."""
        self._count += 1
        folder, name = self._keeping.folder, f"{self._count:02d}-{name}"
        for left in folder.glob(f".{name}{_ENDING}-*{SCRATCH}"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        return Slot(folder / f"{name}{_ENDING}", self._key, self._keeping)


@contextmanager
def kept_when_stopped(save: Callable[[], None]) -> Iterator[None]:
    """Save a state where what is within was asked to stop between two steps, after the last one's state was due."""
    try:
        yield
    except StoppedError:
        save()
        raise


class NoSlot:
    """Stands where a run keeps no state."""

    keeps: ClassVar[bool] = False

    def due(self) -> bool:
        """Return that nothing is to be saved."""
        return False

    def save(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Save nothing."""

    def load(self) -> None:
        """Return that nothing was saved."""


class Slot:
    """The state of one training or search: one safetensors file with a JSON document in its header."""

    keeps: ClassVar[bool] = True

    def __init__(self, path: Path, key: str, keeping: Keeping) -> None:
        self._path = path
        self._key = key
        self._keeping = keeping
        self._steps = 0
        self._save_after = time.monotonic() + keeping.seconds

    def due(self) -> bool:
        """Take note of a finished step; return whether the state is to be saved now."""
        self._steps += 1
        if self._keeping.stop():
            return True
        return self._steps >= self._keeping.steps and time.monotonic() >= self._save_after

    def save(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the state, in one step.

        Raises:
            MethodError: it cannot be written; the state saved before it stays.
            StoppedError: the run was asked to stop; the state is kept.
        """
        begun = time.monotonic()
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {_DOCUMENT: json.dumps({**document, "key": self._key})}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, lambda scratch: save_file(held, scratch, header))
        except (OSError, SafetensorError) as error:
            raise MethodError(
                f"{self._path}: cannot write the training's state ({error}); free space or choose another folder"
            ) from error
        ended = time.monotonic()
        self._steps = 0
        self._save_after = ended + max(self._keeping.seconds, _SHARE * (ended - begun) if self._keeping.seconds else 0)
        if self._keeping.stop():
            raise StoppedError

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the document and the tensors that were saved last; None where nothing was.

        Raises:
            MethodError: the state belongs to another run, or is damaged.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                document = parse_json(file.metadata()[_DOCUMENT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            key = document["key"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise MethodError(f"{self._path}: is no training's state, or damaged ({error}); remove it") from error
        if key != self._key:
            raise MethodError(
                f"{self._path}: belongs to another run (other data, model, options or versions); "
                "remove it or choose another folder"
            )
        return document, tensors


class Stop:
    """Whether work was asked to stop, and by which signal.

    Args:
        told: is called when it is.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.signal: int | None = None
        self._told = told

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM ask for it; a second one stops at once, by KeyboardInterrupt."""

        def ask(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number
            self._told()

        with _handled((signal.SIGINT, signal.SIGTERM), ask):
            yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, by KeyboardInterrupt; unless somebody above listens to it already."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with _handled((signal.SIGTERM,), stop):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
