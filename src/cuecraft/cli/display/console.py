"""The two consoles, progress, and one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from cuecraft.core.events import Answered, Event, HeldOutStep, Scored

Listener = Callable[[Event], None]

notes = Console(stderr=True, highlight=False, soft_wrap=True)
page = Console(highlight=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(document, ensure_ascii=not is_unicode, indent=1) + "\n")


def warn(message: str) -> None:
    """Show a warning on stderr."""
    notes.print(Text.assemble(("warning: ", "yellow"), message))


def fail(message: str) -> None:
    """Show an error on stderr."""
    notes.print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))


def agrees(question: str) -> bool:
    """Ask on the terminal; no where there is none to ask on."""
    if not (sys.stdin.isatty() and notes.is_terminal):
        return False
    notes.print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def stopping() -> None:
    """Print that work will stop at the next place from which it can go on."""
    sys.stderr.write("\nstopping after this step; once more to stop at once\n")


def resumable() -> None:
    """Print that a run was stopped and can go on."""
    notes.print("stopped; the state is kept: the same command with --resume goes on")


def already_finished() -> None:
    """Print that there was nothing to go on with."""
    notes.print("the run was finished already; nothing was run")


def stopped() -> None:
    """Print that work was stopped and is not lost."""
    notes.print("stopped; what is finished is kept, and the same command goes on where it stopped")


def serving(address: str) -> None:
    """Tell where a server answers."""
    notes.print(f"serving on {address} (a page to try it at {address}/); Ctrl-C stops")


@contextmanager
def progress() -> Iterator[Callable[[str], Listener]]:
    """Show a bar for each part of long work, with seconds, loss and accuracy; yields what starts a part.

    Where stderr is no terminal, one line is written when a part begins.
    """
    if not notes.is_terminal:
        yield _plain_part
        return
    columns = [
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Times(),
        TextColumn("{task.fields[state]}"),
    ]
    with Progress(*columns, console=notes) as bars:
        current: list[TaskID] = []

        def start(name: str) -> Listener:
            _finish(bars, current)
            bar = bars.add_task(name, total=None, state="")
            current.append(bar)
            return lambda event: _advance(bars, bar, event)

        yield start
        _finish(bars, current)


class _Times(ProgressColumn):
    """Seconds since a part began and, where its steps are counted, about how many are left."""

    def render(self, task: Task) -> Text:
        """Return the column of one part."""
        begun = task.finished_time if task.finished else task.elapsed
        left = None if task.finished else task.time_remaining
        return Text(f"{begun or 0:.0f} s" + ("" if left is None else f", {left:.0f} s left"), style="cyan")


def _plain_part(name: str) -> Listener:
    notes.print(f"{name} ...")
    return lambda event: None


def _advance(bars: Progress, bar: TaskID, event: Event) -> None:
    state = event.phase
    if isinstance(event, Scored) and event.train_loss is not None:
        state += f": loss {event.train_loss:.3f}"
    if isinstance(event, Scored | HeldOutStep) and event.dev_score is not None:
        state += f", dev {event.measure} {event.dev_score:.3f}"
    if isinstance(event, Answered) and event.padding is not None:
        state += f", {event.padding:.0%} padding"
    counted: dict[str, Any] = {} if event.total is None else {"completed": event.step, "total": event.total}
    bars.update(bar, state=state, **counted)


def _finish(bars: Progress, current: list[TaskID]) -> None:
    for bar in current[-1:]:
        done = bars.tasks[bar].completed
        bars.update(bar, total=done or 1, completed=done or 1)
        bars.stop_task(bar)
