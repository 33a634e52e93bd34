"""The report: one HTML page that stands alone, made of the comparison's document; and the rows of its table.

Rows are made of finished cells; tuned vectors are shown by the words of the vocabulary that lie nearest to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Prompt
from cuecraft.backbone import AnyBackbone
from cuecraft.study.compare import formats, plots
from cuecraft.study.compare.answer_plots import MOST_CLASSES, figures_by_panel
from cuecraft.study.compare.config import UNTUNED, ComparedMethod
from cuecraft.study.compare.schema import Cell, Comparison, Difference, Estimate, Neighbours, Row
from cuecraft.study.compare.statistics import Floats, Ints, Resamples, percentile_interval, spread, two_sided_p

TEMPLATE = "report.html.j2"
NEAREST = 5
#: Where there is no untuned prompt: features and a linear classifier are what one would do without tuning.
PLAIN_CLASSIFIER = "linear-probe"


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
    environment.filters["spoken"] = plots.spoken
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
        "score_plot": drawn(plots.score_plot(document)),
        "time_plot": drawn(plots.time_plot(document)),
        "score": plots.spoken(document.task.primary),
        "others": list(next(row for row, _ in plots.with_results(document)).measures)[1:],
        "confusions": _confusions(document, drawn),
        "panels": [(panel, [(row, drawn(svg)) for row, svg in found]) for panel, found in figures_by_panel(document)],
        "curves": _curves(document, drawn),
        "searches": _searches(document, drawn),
        "neighbours": _neighbours(document, drawn),
        "prompts": [(row, _cells(document, row)) for row, _ in plots.with_results(document)],
    }


def _confusions(document: Comparison, drawn: Callable[[str], Any]) -> list[tuple[Row, Any]]:
    """Return the confusion matrix of each method, where answers are labels and not too many."""
    if len(document.task.labels) > MOST_CLASSES:
        return []
    rows = [row for row, _ in plots.with_results(document) if row.confusion is not None]
    return [(row, drawn(plots.confusion_plot(document, row))) for row in rows]


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


@torch.no_grad()
def nearest_words(prompt: Prompt, backbone: AnyBackbone, count: int = NEAREST) -> list[Neighbours] | None:
    """Return the words nearest to each vector of a soft prompt, by cosine; None for a prompt without vectors.

    A tuned vector need not mean what its nearest word means: in a space of hundreds of dimensions a small step leaves
    the nearest word as it was and may change every answer.
    """
    if prompt.states is not None or not isinstance(prompt.tokens, Tensor):
        return None
    cosines, ids = _cosines(prompt.tokens, backbone.embedding_matrix()).topk(min(count, backbone.vocab_size))
    return [
        Neighbours(words=[str(backbone.tokenizer.decode([token])) for token in tokens], cosines=values)
        for tokens, values in zip(ids.tolist(), cosines.tolist(), strict=True)
    ]


def _cosines(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """Return the cosine `[S, V]` of each vector `[S, d]` to each row of the embedding matrix `[V, d]`."""
    unit = functional.normalize(vectors.float(), dim=1).to(embeddings.device)
    return unit @ functional.normalize(embeddings.float(), dim=1).T


def untuned_name(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the row that stands for the untuned prompt: zero-shot, else the linear probe, else the first."""
    return next((name for name in (UNTUNED, PLAIN_CLASSIFIER) if name in cells), next(iter(cells)))


def best_name(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the row of least mean dev loss; of equals, the first. The test rows have no say."""
    return min(cells, key=lambda name: _dev_loss(cells[name]))


def _dev_loss(cells: Sequence[Cell]) -> float:
    return float(np.mean([np.inf if cell.dev.loss is None else cell.dev.loss for cell in cells]))


def make_rows(
    asked: Sequence[ComparedMethod],
    cells: Mapping[str, Sequence[Cell]],
    refused: Mapping[str, str],
    truth: Ints | None,
    classes: int,
) -> list[Row]:
    """Return a row for each method.

    Args:
        asked: the methods, in their order.
        cells: by name, one for each seed, in the same order of seeds.
        refused: reasons by name.
        truth: `[N]` class numbers of the test rows; None where answers are no labels.
        classes: how many there are, C.
    """
    scores = {name: _scores(found, truth) for name, found in cells.items()}
    draws = Resamples.draw(*next(iter(scores.values())).shape)
    untuned, best = untuned_name(cells), best_name(cells)
    measure = cells[untuned][0].test.measure
    rows = []
    for contender in asked:
        name, method = contender.name, contender.method.name
        if name in refused:
            rows.append(Row(name=name, method=method, refused=refused[name], measure=measure))
            continue
        found = cells[name]
        primary = _estimate(scores[name].mean(axis=1), draws.mean(scores[name]))
        results = {
            "measure": measure,
            "score": primary,
            "measures": _measures(found, primary),
            "versus_untuned": _difference(draws, scores[name] - scores[untuned]) if name != untuned else None,
            "versus_best": _difference(draws, scores[name] - scores[best]) if name != best else None,
        }
        if truth is not None:
            results |= _of_labels(found, truth, classes, draws)
        rows.append(Row(name=name, method=method, **results, **_costs(found)))
    return rows


def _scores(cells: Sequence[Cell], truth: Ints | None) -> Floats:
    """Return the primary scores `[S, N]` of the test rows."""
    if truth is not None:
        hits: Floats = (np.array([cell.predictions for cell in cells]) == truth).astype(np.float64)
        return hits
    return np.array([cell.primary for cell in cells], dtype=np.float64)


def _measures(cells: Sequence[Cell], primary: Estimate) -> dict[str, Estimate]:
    """Return the mean of each score over seeds, the primary one with its interval."""
    first, *others = cells[0].measures
    found = {name: np.array([cell.measures[name] for cell in cells]) for name in others}
    means = {name: Estimate(mean=float(own.mean()), sd=spread(own), low=None, high=None) for name, own in found.items()}
    return {first: primary} | means


def _of_labels(cells: Sequence[Cell], truth: Ints, classes: int, draws: Resamples) -> dict[str, Any]:
    """Return macro-F1 with its interval and the confusion matrix of all seeds."""
    predicted = np.array([cell.predictions for cell in cells])
    by_seed = np.array([cell.macro_f1 for cell in cells], dtype=np.float64)
    macro_f1 = _estimate(by_seed, draws.macro_f1(truth, predicted, classes))
    confusion = sum(confusion_matrix(truth, own, labels=list(range(classes))) for own in predicted)
    return {"macro_f1": macro_f1, "confusion": confusion.tolist()}


def _estimate(by_seed: Floats, draws: Floats) -> Estimate:
    low, high = percentile_interval(draws)
    return Estimate(mean=float(by_seed.mean()), sd=spread(by_seed), low=low, high=high)


def _difference(draws: Resamples, values: Floats) -> Difference:
    found = draws.mean(values)
    low, high = percentile_interval(found)
    return Difference(mean=float(values.mean()), low=low, high=high, p=two_sided_p(found))


def _costs(cells: Sequence[Cell]) -> dict[str, object]:
    """Return what the method took, over its seeds."""
    latencies = [value for cell in cells for value in cell.speed.latencies_ms]
    peaks = [cell.memory.peak for cell in cells if cell.memory.peak is not None]
    rises = [cell.memory.rise for cell in cells if cell.memory.rise is not None]
    loss = _dev_loss(cells)
    return {
        "dev_loss": loss if np.isfinite(loss) else None,
        "tuned_seeds": sum(cell.tuned for cell in cells),
        "train_seconds": float(np.mean([cell.seconds for cell in cells])),
        "examples_per_second": float(np.median([cell.speed.examples_per_second for cell in cells])),
        "latency_p50_ms": float(np.quantile(latencies, 0.5)),
        "latency_p95_ms": float(np.quantile(latencies, 0.95)),
        "peak_memory_bytes": max(peaks, default=None),
        "memory_rise_bytes": max(rises, default=None),
        "tuned_parameters": max(cell.tuned_parameters for cell in cells),
        "stored_bytes": max(cell.stored_bytes for cell in cells),
        "reproducible": next((cell.repeat for cell in cells if cell.repeat), None),
    }
