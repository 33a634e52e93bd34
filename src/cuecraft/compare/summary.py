"""From finished cells to the rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import confusion_matrix

from cuecraft.compare.config import UNTUNED, Contender
from cuecraft.compare.schema import Cell, Difference, Estimate, Row
from cuecraft.compare.statistics import Floats, Ints, Resamples, interval, spread, two_sided_p

#: Where there is no untuned prompt: features and a linear classifier are what one would do without tuning.
PLAIN_CLASSIFIER = "linear-probe"


def untuned_name(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the row that stands for the untuned prompt: zero-shot, else the linear probe, else the first."""
    return next((name for name in (UNTUNED, PLAIN_CLASSIFIER) if name in cells), next(iter(cells)))


def best_name(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the row of least mean dev loss; of equals, the first. The test rows have no say."""
    return min(cells, key=lambda name: _dev_loss(cells[name]))


def _dev_loss(cells: Sequence[Cell]) -> float:
    return float(np.mean([np.inf if cell.dev.loss is None else cell.dev.loss for cell in cells]))


def make_rows(
    asked: Sequence[Contender],
    cells: Mapping[str, Sequence[Cell]],
    refused: Mapping[str, str],
    truth: Ints,
    classes: int,
) -> list[Row]:
    """Return a row for each method.

    Args:
        asked: the methods, in their order.
        cells: by name, one for each seed, in the same order of seeds.
        refused: reasons by name.
        truth: `[N]` class numbers of the test rows.
        classes: how many there are, C.
    """
    predicted = {name: np.array([cell.predictions for cell in found]) for name, found in cells.items()}
    draws = Resamples.draw(len(next(iter(predicted.values()))), len(truth))
    hits = {name: (found == truth).astype(np.float64) for name, found in predicted.items()}
    untuned, best = untuned_name(cells), best_name(cells)
    rows = []
    for contender in asked:
        name, method = contender.name, contender.method.name
        if name in refused:
            rows.append(Row(name=name, method=method, refused=refused[name]))
            continue
        found = cells[name]
        results = {
            "accuracy": _estimate(hits[name].mean(axis=1), draws.mean(hits[name])),
            "macro_f1": _estimate(
                np.array([cell.macro_f1 for cell in found]), draws.macro_f1(truth, predicted[name], classes)
            ),
            "versus_untuned": _difference(draws, hits[name] - hits[untuned]) if name != untuned else None,
            "versus_best": _difference(draws, hits[name] - hits[best]) if name != best else None,
            "confusion": sum(confusion_matrix(truth, p, labels=list(range(classes))) for p in predicted[name]).tolist(),
        }
        rows.append(Row(name=name, method=method, **results, **_costs(found)))
    return rows


def _estimate(by_seed: Floats, draws: Floats) -> Estimate:
    low, high = interval(draws)
    return Estimate(mean=float(by_seed.mean()), sd=spread(by_seed), low=low, high=high)


def _difference(draws: Resamples, values: Floats) -> Difference:
    found = draws.mean(values)
    low, high = interval(found)
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
