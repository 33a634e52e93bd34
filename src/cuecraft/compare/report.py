"""The report: one HTML page that stands alone, made of the comparison's document and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from itertools import zip_longest
from typing import Any

from cuecraft.compare import formats, plots
from cuecraft.compare.schema import Cell, Comparison, Row

TEMPLATE = "report.html.j2"


def render_report(document: Comparison) -> str:
    """Return the page.

    Raises:
        ModuleNotFoundError: matplotlib or jinja2 is not installed.
    """
    import jinja2
    import matplotlib  # noqa: F401  (asked for first, so that it is missed before anything is drawn)

    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    environment.filters |= {
        name: getattr(formats, name)
        for name in ("estimate", "interval", "difference", "seconds", "milliseconds", "size", "count", "rate", "repeat")
    }
    environment.filters["word"] = lambda text: plots.visible(text, 40)
    environment.filters["one_line"] = lambda text: text.replace("\n", "↵ ")
    return environment.from_string(source).render(_content(document)) + "\n"


def _content(document: Comparison) -> dict[str, Any]:
    from markupsafe import Markup

    def drawn(svg: str) -> Markup:
        return Markup(svg)  # our own; matplotlib has escaped the texts in it

    by_name = {row.name: row for row in document.rows}
    return {
        "document": document,
        "best": by_name[document.best],
        "untuned": by_name[document.untuned],
        "refused": [row for row in document.rows if row.refused],
        "rows": [row for row, _ in plots.with_results(document)],
        "classes": document.task.labels,
        "seed_numbers": [entry.seed for entry in document.seeds],
        "accuracy_plot": drawn(plots.accuracy_plot(document)),
        "time_plot": drawn(plots.time_plot(document)),
        "confusions": [(row, drawn(plots.confusion_plot(document, row))) for row, _ in plots.with_results(document)],
        "curves": _curves(document, drawn),
        "searches": _searches(document, drawn),
        "neighbours": _neighbours(document, drawn),
        "prompts": [(row, _cells(document, row)) for row, _ in plots.with_results(document)],
    }


def _cells(document: Comparison, row: Row) -> list[Cell]:
    return [cell for cell in document.cells if cell.name == row.name]


def _curves(document: Comparison, drawn: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return the learning curve of each method that takes steps, with its table: a line for each step."""
    ceiling = plots.loss_ceiling(document)
    found = []
    for row, _ in plots.with_results(document):
        cells = _cells(document, row)
        if max(len(cell.steps) for cell in cells) < 2:
            continue
        lines = list(zip_longest(*(cell.steps for cell in cells)))
        svg = drawn(plots.curve_plot(document, row.name, ceiling))
        found.append({"name": row.name, "svg": svg, "seeds": [cell.seed for cell in cells], "lines": lines})
    return found


def _searches(document: Comparison, drawn: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return the trace of each method that searches words."""
    found = []
    for row, _ in plots.with_results(document):
        traces = [(cell.seed, plots.search_steps(cell)) for cell in _cells(document, row)]
        if _longest(steps for _, steps in traces):
            found.append({"name": row.name, "svg": drawn(plots.search_plot(document, row.name)), "traces": traces})
    return found


def _longest(parts: Iterable[list[Any]]) -> int:
    return max(map(len, parts), default=0)


def _neighbours(document: Comparison, drawn: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return the nearest words of each method that has vectors; the figure is of the seed of least dev loss."""
    found = []
    for row, _ in plots.with_results(document):
        cells = [cell for cell in _cells(document, row) if cell.neighbours]
        if cells:
            shown = min(cells, key=lambda cell: float("inf") if cell.dev.loss is None else cell.dev.loss)
            svg = drawn(plots.words_plot(document, shown))
            found.append({"name": row.name, "seed": shown.seed, "svg": svg, "cells": cells})
    return found
