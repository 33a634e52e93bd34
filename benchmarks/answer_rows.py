"""Rows of the tables over `answers.json`: choices, sets, numbers, facts, spans and 77 intents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from common import read_result
from table_rows import share

Cells = Sequence[Mapping[str, Any]]
#: Columns of each table: the task, and the name of the score.
_PAIRS = (("cb", "accuracy"), ("cb", "macro_f1"), ("rte", "accuracy"), ("wic", "accuracy"), ("copa", "accuracy"))
_RELATIONS = tuple((name, "precision_at_1") for name in ("P17", "P19", "P36", "P101", "P103", "P138"))
_REJECT = ("in_scope_accuracy", "out_of_scope_recall", "auroc")
_SCORES = {
    "sets": ("example_f1", "micro_f1", "macro_f1"),
    "stars": ("mean_absolute_error", "spearman", "quadratic_weighted_kappa"),
    "facts": ("precision_at_1", "precision_at_10", "mean_reciprocal_rank"),
    "slots": ("entity_f1", "entity_precision", "entity_recall"),
}


def answer_tables() -> dict[str, list[str]]:
    """Return the rows of each part; none of what was not measured."""
    cells = read_result("answers.json").get("cells", [])
    names = ("pairs", "banking", "reject", *_SCORES)
    parts = {name: [cell for cell in cells if cell["part"] == name] for name in names}
    found = {f"answers-{name}": _rows(parts[name], scores) for name, scores in _SCORES.items()}
    tasks = dict.fromkeys(cell["task"] for cell in parts["reject"])
    found["answers-reject"] = [
        f"| `{task}` {row}" for task in tasks for row in _rows(_of_task(parts["reject"], task), _REJECT)
    ]
    found["answers-relations"] = [_by_task(name, own, _RELATIONS) for name, own in _by_name(parts["facts"])]
    found["answers-pairs"] = [_by_task(name, own, _PAIRS) for name, own in _by_name(parts["pairs"])]
    found["answers-banking"] = [_banking(name, own) for name, own in _by_name(parts["banking"])]
    return found


def _by_name(cells: Cells) -> Iterable[tuple[str, Cells]]:
    """Return cells of each method and model, in their first order."""
    names = dict.fromkeys((cell["name"], cell["model"]) for cell in cells)
    for name, model in names:
        yield f"`{name}`, {model}", [cell for cell in cells if (cell["name"], cell["model"]) == (name, model)]


def _mean(cells: Cells, score: str) -> str:
    found = [cell["metrics"][score] for cell in cells if score in cell["metrics"]]
    return share(mean(found)) if found else "-"


def _seconds(cells: Cells) -> str:
    """Return the longest; with a mark where other work ran meanwhile."""
    return f"{'~' * any(cell['busy'] for cell in cells)}{max(cell['seconds'] for cell in cells):.0f}" if cells else "-"


def _rows(cells: Cells, scores: Sequence[str]) -> list[str]:
    """Return a row of each method: mean scores over tasks and seeds, how many runs these are, seconds."""
    return [
        f"| {name} | {' | '.join(_mean(own, score) for score in scores)} | {len(own)} | {_seconds(own)} |"
        for name, own in _by_name(cells)
    ]


def _of_task(cells: Cells, task: str) -> Cells:
    return [cell for cell in cells if cell["task"] == task]


def _by_task(name: str, cells: Cells, columns: Sequence[tuple[str, str]]) -> str:
    """Return a method's row; each column is a task and the name of its score."""
    return f"| {name} | {' | '.join(_mean(_of_task(cells, task), score) for task, score in columns)} |"


def _banking(name: str, cells: Cells) -> str:
    parts = []
    for task in ("5-shot", "10-shot"):
        own = sorted(_of_task(cells, task), key=lambda cell: cell["seed"])
        parts += [", ".join(share(cell["metrics"]["accuracy"]) for cell in own) or "-", _seconds(own)]
    return f"| {name} | {' | '.join(parts)} |"
