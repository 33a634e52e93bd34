"""The figures of the report that fit a kind of answers: how sure, how complete, how far off, and what is mixed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cuecraft.study.compare.figures import expected_calibration_error
from cuecraft.study.compare.plots import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    REFERENCE,
    SMALL,
    SMALL_TEXT,
    as_svg,
    axes,
    figure,
    place_of,
    series,
    with_results,
)
from cuecraft.study.compare.schema import Cell, Comparison, Row

#: Classes above which a confusion matrix cannot be read.
MOST_CLASSES = 12
_MOST_CONFUSED = 12  # pairs of classes
_LONGEST = 20  # characters of a class's name


@dataclass(frozen=True)
class PlotPanel:
    """Figures of one sort, one of each method.

    Args:
        name: of the section in the page's address.
        title: of the section.
        note: what is to be seen.
        plot: draws the figure of a method; None where there is nothing to be drawn.
    """

    name: str
    title: str
    note: str
    plot: Callable[[Comparison, Row], str | None]


def figures_by_panel(document: Comparison) -> list[tuple[PlotPanel, list[tuple[Row, str]]]]:
    """Return each panel that fits the answers, with the figures of its methods."""
    found = []
    for panel in PANELS:
        drawn = [(row, panel.plot(document, row)) for row, _ in with_results(document)]
        shown = [(row, svg) for row, svg in drawn if svg is not None]
        if shown:
            found.append((panel, shown))
    return found


def _cells(document: Comparison, row: Row) -> list[Cell]:
    return [cell for cell in document.cells if cell.name == row.name]


def reliability_plot(document: Comparison, row: Row) -> str | None:
    """Draw how often answers are right by how probable they are said to be; a line for each seed."""
    seeds = [(cell.seed, cell.figures.reliability) for cell in _cells(document, row) if cell.figures.reliability]
    if not seeds:
        return None
    with figure(SMALL, 2.6, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        plot.plot([0, 1], [0, 1], color=REFERENCE, linewidth=1, linestyle=(0, (3, 3)))
        for number, (_, bands) in enumerate(seeds):
            total = sum(band.count for band in bands)
            expected, observed = [band.expected for band in bands], [band.observed for band in bands]
            sizes = [6 + 90 * band.count / total for band in bands]
            plot.plot(expected, observed, color=series(number), linewidth=1.2)
            plot.scatter(expected, observed, s=sizes, color=series(number), linewidths=0, alpha=0.75)
        plot.set_xlim(-0.02, 1.02)
        plot.set_ylim(-0.02, 1.02)
        plot.grid(axis="both")
        plot.set_xlabel("probability")
        plot.set_ylabel("share that is right")
        errors = ", ".join(f"seed {seed}: {expected_calibration_error(bands):.3f}" for seed, bands in seeds)
        label = f"Reliability of {row.name}. Expected calibration error: {errors}"
        return as_svg(drawn, label, f"reliability-{place_of(document, row.name)}")


def precision_recall_plot(document: Comparison, row: Row) -> str | None:
    """Draw precision against recall of all labels at one threshold; a dot for the answers, a line for each seed."""
    curves = [(c.seed, c.figures.precision_recall) for c in _cells(document, row) if c.figures.precision_recall]
    if not curves:
        return None
    with figure(SMALL, 2.6, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        for number, (_, curve) in enumerate(curves):
            plot.plot(curve.recall, curve.precision, color=series(number), linewidth=1.3)
            plot.plot([curve.decided_recall], [curve.decided_precision], "o", color=series(number), markersize=5)
        plot.set_xlim(-0.02, 1.02)
        plot.set_ylim(-0.02, 1.02)
        plot.grid(axis="both")
        plot.set_xlabel("recall")
        plot.set_ylabel("precision")
        words = "; ".join(
            f"seed {seed}: average precision {own.average_precision:.3f}, answers at precision "
            f"{own.decided_precision:.3f} and recall {own.decided_recall:.3f}"
            for seed, own in curves
        )
        label = f"Precision and recall of {row.name}. {words}"
        return as_svg(drawn, label, f"precision-{place_of(document, row.name)}")


def ranks_plot(document: Comparison, row: Row) -> str | None:
    """Draw in how many rows the right option is the likeliest, the second, and so on; all seeds together."""
    known = [cell.figures.ranks for cell in _cells(document, row) if cell.figures.ranks]
    if not known:
        return None
    totals = {name: sum(own[name] for own in known) for name in known[0]}
    last = max([place for place, count in enumerate(totals.values()) if count] + [1])
    shown = dict(list(totals.items())[: last + 1])
    whole = sum(totals.values())
    with figure(SMALL, 2.2, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        colors = [ACCENT if name == "1" else MUTED for name in shown]
        plot.bar(range(len(shown)), [count / whole for count in shown.values()], 0.82, color=colors, alpha=0.75)
        plot.set_xticks(range(len(shown)), list(shown))
        plot.grid(axis="y")
        plot.set_xlabel("rank of the right option")
        plot.set_ylabel("share of rows")
        words = ", ".join(f"rank {name}: {count}" for name, count in shown.items())
        label = f"Ranks of the right option by {row.name}, all seeds. {words}"
        return as_svg(drawn, label, f"ranks-{place_of(document, row.name)}")


def errors_plot(document: Comparison, row: Row) -> str | None:
    """Draw how many numbers are answered too small or too great, and by how much; all seeds together."""
    known = [cell.figures.errors for cell in _cells(document, row) if cell.figures.errors]
    if not known:
        return None
    first = known[0]
    counts = np.sum([[bin_.count for bin_ in own] for own in known], axis=0)
    middles = [(bin_.low + bin_.high) / 2 for bin_ in first]
    width = first[0].high - first[0].low
    with figure(SMALL, 2.2, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        plot.bar(middles, counts / counts.sum(), 0.9 * width, color=ACCENT, alpha=0.7)
        plot.axvline(0, color=LINE, linewidth=1)
        plot.grid(axis="y")
        plot.set_xlabel("answer less right number")
        plot.set_ylabel("share of rows")
        words = ", ".join(f"{m:.2g}: {count}" for m, count in zip(middles, counts.tolist(), strict=True) if count)
        label = f"Errors of {row.name}, all seeds, by their size. {words}"
        return as_svg(drawn, label, f"errors-{place_of(document, row.name)}")


def confused_plot(document: Comparison, row: Row) -> str | None:
    """Draw the pairs of classes that are most often mixed up, where there are too many for a matrix."""
    pairs = most_confused(row, document.task.labels)
    if not pairs or len(document.task.labels) <= MOST_CLASSES:
        return None
    with figure(SMALL, 0.7 + 0.36 * len(pairs), SMALL_TEXT) as drawn:
        plot = axes(drawn)
        greatest = max(share for _, _, _, share in pairs)
        for place, (true, said, count, share) in enumerate(pairs):
            # Names stand above the bars: next to them, long ones would take the space of the bars.
            plot.text(0, place - 0.24, f"{_short(true)} → {_short(said)}", va="center", color=INK)
            plot.barh(place + 0.08, share, 0.26, color=REFERENCE, alpha=0.6)
            plot.text(share + 0.01 * greatest, place + 0.08, f" {count}", va="center", color=MUTED)
        plot.set_yticks([])
        plot.set_ylim(len(pairs) - 0.6, -0.6)
        plot.set_xlim(0, 1.15 * greatest)
        plot.spines["left"].set_visible(False)
        plot.set_xlabel("share of the true class")
        words = "; ".join(f"{true} answered as {said}: {count}" for true, said, count, _ in pairs)
        label = f"Most confused classes of {row.name}, all seeds. {words}"
        return as_svg(drawn, label, f"confused-{place_of(document, row.name)}")


def most_confused(row: Row, labels: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """Return true class, answered class, count and share of the true class, of the pairs with the most mistakes."""
    counts = np.array(row.confusion or [])
    if not counts.size:
        return []
    totals = counts.sum(1, keepdims=True)
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    found = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    return [
        (labels[true], labels[said], int(counts[true, said]), float(counts[true, said] / totals[true, 0]))
        for true, said in found
        if wrong[true, said]
    ]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


PANELS = (
    PlotPanel(
        "confused",
        "Most confused classes",
        "True class and the class that was answered in its place, by the number of rows over all seeds.",
        confused_plot,
    ),
    PlotPanel(
        "precision",
        "Precision and recall",
        "All labels together, at one threshold for all; the dot is where the answers are, with a threshold for each "
        "label. A line for each seed.",
        precision_recall_plot,
    ),
    PlotPanel("ranks", "Ranks", "Where the right option stands among a row's options; all seeds together.", ranks_plot),
    PlotPanel("errors", "Errors", "Answer less right number, over all seeds.", errors_plot),
    PlotPanel(
        "reliability",
        "Reliability",
        "How often answers of about one probability are right; on the dashed line the probability says it. Dots are "
        "the larger the more answers they stand for; a line for each seed.",
        reliability_plot,
    ),
)
