"""What a job over files shows: one line of progress, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.text import Text

from cuecraft.cli.display.console import notes, page

if TYPE_CHECKING:
    from cuecraft.serving.bulk.job import JobProgress

_EVERY = 30.0  # seconds between two lines where stderr is no terminal
_OFTEN = 0.25  # between two looks of one line that stays


@contextmanager
def bulk_progress() -> Iterator[Callable[[JobProgress], None]]:
    """Show how far a job has come: one line that stays, or where stderr is no terminal a line now and then."""
    last = 0.0
    if not notes.is_terminal:

        def note(progress: JobProgress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _EVERY and last:
                notes.print(_line(progress))
            if now - last >= _EVERY:
                last = now

        yield note
        return
    with Live(Text(""), console=notes, auto_refresh=False, transient=True) as live:

        def show(progress: JobProgress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _OFTEN:
                last = now
                live.update(Text(_line(progress)), refresh=True)

        yield show


def _line(progress: JobProgress) -> str:
    parts = [
        f"{progress.read:,} rows",
        f"{progress.rows_per_second:,.0f} rows/s",
        f"{progress.mb_per_second:.2f} MB/s",
        f"{progress.keys / max(1, progress.classified):.1%} distinct",
        f"{progress.quarantined:,} quarantined",
    ]
    done, of = progress.under_way
    if of:
        parts.append(f"backbone {done:,} of {of:,}")
    if progress.seconds_left is not None:
        parts.append(f"{_clock(progress.seconds_left)} left")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_classified(document: Mapping[str, Any]) -> None:
    """Print what came of a job over files."""
    read, classified, quarantined = (document[name] for name in ("read", "classified", "quarantined"))
    lines = [f"{read:,} read = {classified:,} classified + {quarantined:,} quarantined"]
    if document["reasons"]:
        lines.append("quarantined: " + ", ".join(f"{name} {count:,}" for name, count in document["reasons"].items()))
    if document["changed"]:
        lines.append(f"changed while they were read: {', '.join(document['changed'][:5])}; some rows may be amiss")
    lines.append(
        f"{document['distinct']:,} distinct texts (those of each shard), {document['computed']:,} read by the "
        f"backbone, {document['taught']:,} answered by the student"
    )
    told = {"template": "answers of other texts by template", "cascade": "answers of the student"}
    lines += [_agreement(told[name], own) for name, own in document["agreement"].items() if own["rows"]]
    cascade = document["cascade"]
    if cascade and not cascade["used"]:
        lines.append(f"the student was not used ({cascade['why']})")
    elif cascade and cascade["fell_back"]:
        lines.append("the student drifted, and the backbone answered from there on")
    lines.append(
        f"{document['seconds']:,.0f} s, {document['rows_per_second']:,.0f} rows/s, "
        f"{document['mb_per_second']:.2f} MB/s; {document['shards']} shards in {document['out']}"
    )
    for line in lines:
        page.print(line, markup=False, soft_wrap=True)


def _agreement(what: str, own: Mapping[str, Any]) -> str:
    low, high = own["interval"]
    return f"{what}: {own['agreed']} of {own['rows']} audited agree, {own['share']:.2%} ({low:.2%} to {high:.2%})"
