"""Numbers of a comparison as people read them; for the terminal and the report alike."""

from __future__ import annotations

from dataclasses import dataclass

from cuecraft.study.compare.schema import Comparison, Difference, Estimate, RepeatEntry, Row

NONE = "-"


def estimate(found: Estimate | None) -> str:
    """Return a mean and, with several seeds, its standard deviation."""
    if found is None:
        return NONE
    return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}")


def interval(found: Estimate | Difference | None) -> str:
    """Return the ends of an interval; those of a difference with their signs."""
    if found is None or found.low is None or found.high is None:
        return NONE
    sign = "+" if isinstance(found, Difference) else ""
    return f"{found.low:{sign}.3f} to {found.high:{sign}.3f}"


def difference(found: Difference | None) -> str:
    """Return a difference with its p-value."""
    return NONE if found is None else f"{found.mean:+.3f} ({p_value(found.p)})"


def p_value(p: float) -> str:
    """Return a p-value; below a thousandth the bootstrap has too few draws to tell more."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    return f"{value / 60:.1f} min"


def milliseconds(value: float | None) -> str:
    """Return a latency."""
    return NONE if value is None else f"{value:.1f} ms"


def size(value: int | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return NONE
    shown = float(value)
    for unit in ("B", "KiB", "MiB"):
        if abs(shown) < 1024:
            return f"{shown:.0f} B" if unit == "B" else f"{shown:.1f} {unit}"
        shown /= 1024
    return f"{shown:.2f} GiB"


def count(value: int | None) -> str:
    """Return a whole number in groups of three."""
    return NONE if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Return how many a second."""
    return NONE if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def repeat(found: RepeatEntry | None) -> str:
    """Return whether a second run did the same, and in how many steps that was looked at."""
    return NONE if found is None else f"{'yes' if found.same else 'no'} ({found.steps})"


@dataclass(frozen=True)
class TextTable:
    """A table of the terminal; the first column names the method."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def text_tables(document: Comparison) -> list[TextTable]:
    """Return two tables: what the methods reach, and what they take. Methods that were refused are left out."""
    rows = [row for row in document.rows if not row.refused]
    is_labels = document.task.answers == "labels"
    names = ("acc.", "sd", "95%", "F1") if is_labels else _titles(rows[0])
    reached = ("method", *names, "vs untuned", "p", "vs best", "p")
    mean = _mean if is_labels else _measured
    taken = ("method", "train s", "texts/s", "p50 ms", "p95 ms", "MiB", "trained", "stored", "again")
    return [
        TextTable(
            reached, [(row.name, *mean(row), *_signed(row.versus_untuned), *_signed(row.versus_best)) for row in rows]
        ),
        TextTable(taken, [_taken(row) for row in rows]),
    ]


def _mean(row: Row) -> tuple[str, ...]:
    accuracy, macro_f1 = row.score, row.macro_f1
    if accuracy is None or macro_f1 is None:
        return (NONE,) * 4
    sd = NONE if accuracy.sd is None else f"{accuracy.sd:.3f}"
    return f"{accuracy.mean:.3f}", sd, f"{accuracy.low:.3f}-{accuracy.high:.3f}", f"{macro_f1.mean:.3f}"


def _titles(row: Row) -> tuple[str, ...]:
    """Return the titles of all scores, the primary one with its spread and interval."""
    first, *others = (name.replace("_", " ") for name in row.measures)
    return first, "sd", "95%", *others


def _measured(row: Row) -> tuple[str, ...]:
    first, *others = row.measures.values()
    sd = NONE if first.sd is None else f"{first.sd:.3f}"
    return f"{first.mean:.3f}", sd, interval(first), *(f"{own.mean:.3f}" for own in others)


def _signed(found: Difference | None) -> tuple[str, str]:
    return (NONE, NONE) if found is None else (f"{found.mean:+.3f}", f"{found.p:.3f}")


def _taken(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        NONE if row.train_seconds is None else f"{row.train_seconds:.1f}",
        rate(row.examples_per_second),
        milliseconds(row.latency_p50_ms).removesuffix(" ms"),
        milliseconds(row.latency_p95_ms).removesuffix(" ms"),
        NONE if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.0f}",
        _short(row.tuned_parameters),
        size(row.stored_bytes),
        repeat(row.reproducible),
    )


def _short(value: int | None) -> str:
    """Return a count in few characters: all digits below a million."""
    return f"{value / 1e6:.1f}M" if value is not None and value >= 1e6 else count(value)
