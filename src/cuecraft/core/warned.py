"""Warnings that wait until no error is likely to end the work: an error is one line, with nothing before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cuecraft.core.errors import CuecraftError, CuecraftWarning
from cuecraft.core.events import Event, Started


@contextmanager
def errors_first(started: Started) -> Iterator[Started]:
    """Keep our warnings back until the first step of a block; give `started`, whose first step shows them.

    Each is shown once. They are shown at the end of the block where there was no step, and left out where a
    CuecraftError ends it before.

    Args:
        started: called with each part of the work, and returns the progress callback of its steps.
    """
    shown, is_waiting = warnings.showwarning, True
    kept: list[tuple[Warning | str, type[Warning], tuple[Any, ...], dict[str, Any]]] = []

    def keep(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if is_waiting and issubclass(category, CuecraftWarning):
            if str(message) not in (str(own) for own, *_ in kept):  # what is read twice is warned of once
                kept.append((message, category, rest, more))
        else:
            shown(message, category, *rest, **more)

    def show() -> None:
        nonlocal is_waiting
        is_waiting = False
        while kept:
            message, category, rest, more = kept.pop(0)
            shown(message, category, *rest, **more)

    def start(part: str) -> Callable[[Event], None]:
        report = started(part)

        def step(event: Event) -> None:
            show()
            report(event)

        return step

    warnings.showwarning = keep
    try:
        yield start
    except CuecraftError:
        kept.clear()
        raise
    finally:
        warnings.showwarning = shown
        show()
