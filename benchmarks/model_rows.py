"""Rows of the tables over `models.json`: encoders next to SetFit, chat, examples in the prompt, GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from common import read_result
from table_rows import SEEDS, TASKS, share

Way = Mapping[str, Any]


def model_tables() -> dict[str, list[str]]:
    """Return the rows of each part that was measured, in the order of its ways."""
    parts = read_result("models.json").get("parts", {})
    makers = {"encoders": _encoder, "chat": _accuracies, "in-context": _in_context, "gguf": _gguf}
    found = {}
    for part in parts:
        ways = parts[part]["ways"]
        found[f"models-{part}"] = [f"| `{name}` | {' | '.join(makers[part](way))} |" for name, way in ways.items()]
    return found


def _means(way: Way, figure: str) -> list[float | None]:
    """Return the mean of a figure on each task, over the runs that have it; None where none has."""
    found = [way["tasks"].get(task, {}).get(figure, ()) for task in TASKS]
    known = [[value for value in own if value is not None] for own in found]
    return [mean(own) if own else None for own in known]


def _accuracies(way: Way) -> list[str]:
    return ["-" if value is None else share(value) for value in _means(way, "accuracy")]


def _runs(way: Way) -> int:
    return max(len(own["accuracy"]) for own in way["tasks"].values())


def _encoder(way: Way) -> list[str]:
    """Accuracy by task over the seeds measured, their mean, seconds by task, megabytes, and texts a second."""
    is_whole = len(way["tasks"]) == len(TASKS) and all(len(t["accuracy"]) == len(SEEDS) for t in way["tasks"].values())
    marked = "~" if way["beside_other_work"] else ""
    seconds = [f"{marked}{value:.0f}" if value is not None else "-" for value in _means(way, "seconds")]
    stored = [value for value in _means(way, "bytes_stored") if value is not None]
    speed = [value for value in _means(way, "texts_per_second") if value is not None]
    size = f"{mean(stored) / 1e6:.2f}" if stored else "-"
    return [
        str(_runs(way)),
        share(way["mean"]) if is_whole else "-",
        *_accuracies(way),
        " / ".join(seconds),
        size,
        f"{mean(speed):.0f}" if speed else "-",
    ]


def _in_context(way: Way) -> list[str]:
    speed = [value for value in _means(way, "texts_per_second") if value is not None]
    return [*_accuracies(way), f"{mean(speed):.1f}"]


def _gguf(way: Way) -> list[str]:
    (own,) = way["tasks"].values()
    same = "yes" if all(own["same_bits_from_the_folder"]) else "no"
    return [share(mean(own["accuracy"])), f"{mean(own['seconds']):.0f}", same]
