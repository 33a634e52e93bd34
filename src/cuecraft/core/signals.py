"""SIGINT and SIGTERM: a request to stop, or an end at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
