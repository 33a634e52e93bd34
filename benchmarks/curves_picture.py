"""The picture of curves.json: test accuracy against seconds, one panel for each task."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]  # seconds and accuracy, in the order of time

NAMES = {"sst-2": "SST-2", "agnews": "AG News", "trec": "TREC"}
INK, MUTED, LINE = "#1a1a1a", "#595959", "#d9d9d9"
_OFFSET = 7  # points between the end of a line and its label


class Look(NamedTuple):
    """How a method is shown: name, colour (Okabe and Ito, for the colour-blind), and line or marker."""

    label: str
    color: str
    style: str


LINES = {
    "deep-cue": Look("deep cue", "#0072b2", "-"),
    "lora": Look("LoRA", "#009e73", (0, (5, 1.5))),  # type: ignore[arg-type]
    "peft-prompt-tuning": Look("PEFT prompt tuning", "#cc79a7", (0, (1.5, 1))),  # type: ignore[arg-type]
}
MARKS = {
    "auto-fast": Look("auto, fast", "#e69f00", "s"),
    "auto": Look("auto, good", "#d55e00", "o"),
    "setfit": Look("SetFit", "#000000", "D"),
}


class Label(NamedTuple):
    """A label to be placed at a point (seconds, accuracy) in a colour."""

    text: str
    x: float
    y: float
    color: str


def mean_curve(runs: Sequence[Points]) -> Points:
    """Return the mean over runs of the accuracy that each has reached by a time.

    From when the last of them has its first point, at every time at which one of them has a point. A run that has ended
    keeps its last accuracy.
    """
    begun = max(run[0][0] for run in runs)
    times = sorted({seconds for run in runs for seconds, _ in run if seconds >= begun})
    return [(at, statistics.mean(_reached(run, at) for run in runs)) for at in times]


def _reached(run: Points, at: float) -> float:
    return [accuracy for seconds, accuracy in run if seconds <= at][-1]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the runs and end points of curves.json as an SVG file; the same result gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    lines = {row["task"] for row in result["runs"]}
    tasks = [task for task in NAMES if task in lines]  # a mark alone shows no time course
    rows = [row for row in (*result["runs"], *result.get("ends", [])) if row["task"] in lines]
    style = {
        "svg.hashsalt": "cuecraft",
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.4, 0.9 + 2.5 * len(tasks)), dpi=72, layout="constrained")
        panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
        labels = [_panel(panel, task, result) for panel, task in zip(panels, tasks, strict=True)]
        _time_axis(panels[-1])
        figure.supxlabel(_caption(rows), fontsize=7.5, color=MUTED)
        figure.draw_without_rendering()  # lays out, so that labels can be placed
        figure.set_layout_engine("none")
        for panel, own in zip(panels, labels, strict=True):
            place_labels(figure, panel, own)
        figure.savefig(path, metadata={"Date": None})


def _time_axis(panel: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(low, high * 1.6)  # so that the label of what ends last fits
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.set_xlabel("seconds of reading, training and choice by dev (logarithmic)")


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was measured, and on which machine or machines."""
    places = {f"{row['machine']['cpu']} ({row['machine']['threads']} threads)" for row in rows}
    lines, marks = (sorted({row["seed"] for row in rows if (row["method"] in kinds)}) for kinds in (LINES, MARKS))
    sentence = "; SetFit on MiniLM" if any(row["method"] == "setfit" for row in rows) else ""
    where = " or ".join(sorted(places))
    seeds = f"Seeds of lines {', '.join(map(str, lines))}, of marks {', '.join(map(str, marks))}"
    return f"SmolLM2-135M{sentence}; {where}. {seeds}.\nThick lines, full marks: means; thin, open: each seed."


def _panel(panel: Axes, task: str, result: Mapping[str, Any]) -> list[Label]:
    """Draw one task; return the labels that it needs."""
    labels = []
    panel.set_xscale("log")
    for method, look in LINES.items():
        runs = [
            [(point["seconds"], point["accuracy"]) for point in run["epochs"]]
            for run in result["runs"]
            if (run["task"], run["method"]) == (task, method)
        ]
        if not runs:
            continue
        for run in runs:
            panel.step(*zip(*run, strict=True), where="post", color=look.color, linewidth=0.8, alpha=0.4)
        mean = mean_curve(runs)
        panel.step(*zip(*mean, strict=True), where="post", color=look.color, linewidth=2, linestyle=look.style)
        panel.plot(*mean[-1], marker=".", markersize=9, color=look.color)
        labels.append(Label(look.label, *mean[-1], look.color))
    for method, look in MARKS.items():
        found = [
            (end["seconds"], end["accuracy"])
            for end in result.get("ends", [])
            if (end["task"], end["method"]) == (task, method)
        ]
        if not found:
            continue
        seconds, accuracies = zip(*found, strict=True)
        bare = {"color": look.color, "marker": look.style, "linestyle": "none"}
        panel.plot(seconds, accuracies, **bare, markersize=4, markerfacecolor="none", alpha=0.6)
        mean_end = statistics.mean(seconds), statistics.mean(accuracies)
        panel.plot(*mean_end, **bare, markersize=7, zorder=3)
        labels.append(Label(look.label, *mean_end, look.color))
    panel.set_title(NAMES[task], loc="left", fontsize=10, fontweight="bold")
    panel.set_ylabel("test accuracy")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.3f}".removeprefix("0"))
    panel.grid()
    panel.set_axisbelow(True)
    return labels


def place_labels(figure: Figure, panel: Axes, labels: Sequence[Label]) -> None:
    """Write each label next to its point, where it covers least of other labels, lines and marks."""
    from matplotlib.text import Text

    drawn: list[tuple[float, float]] = []
    for line in panel.lines:
        points = panel.transData.transform(line.get_xydata())
        drawn.extend(points if line.get_linestyle() == "None" else _dense(points))
    frame = panel.get_window_extent()
    taken: list[tuple[float, float, float, float]] = []
    for label in sorted(labels, key=lambda label: -label.x):
        written = panel.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=INK,
            va="center",
            zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2},
        )
        size = Text.get_window_extent(written)  # an annotation's own has its line in it
        x, y = panel.transData.transform((label.x, label.y))
        boxes = {
            (dx, dy): (x + dx, y + dy - size.height / 2, x + dx + size.width, y + dy + size.height / 2)
            for dx, dy in _offsets(size.width)
        }
        scale = figure.dpi / 72
        best = min(boxes, key=lambda at: _cost(boxes[at], at, taken, drawn, frame.bounds))
        written.set_position((best[0] / scale, best[1] / scale))
        taken.append(boxes[best])


def _offsets(width: float) -> Iterator[tuple[float, float]]:
    """Yield where the left end of a label's middle line may be, in points from what it names."""
    for height in (0, 10, -10, 18, -18, 28, -28, 40, -40):
        yield _OFFSET, height
        yield -_OFFSET - width, height
        if height:
            yield -width / 2, height


def _cost(
    box: tuple[float, float, float, float],
    offset: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    drawn: Sequence[tuple[float, float]],
    frame: tuple[float, float, float, float],
) -> float:
    """Return how bad a place is: labels count most, then the frame, then what is covered, then the distance."""
    left, low, right, high = box
    x, y, width, height = frame
    is_out = left < x or right > x + width + 20 or low < y or high > y + height + 6
    others = sum(left < r and right > a and low < h and high > b for a, b, r, h in taken)
    covered = sum(left <= px <= right and low <= py <= high for px, py in drawn)
    return 10_000 * others + 1_000 * is_out + covered + 0.4 * abs(offset[1]) + (3 if offset[0] < 0 else 0)


def _dense(points: Sequence[Sequence[float]]) -> Iterator[tuple[float, float]]:
    """Yield points of a line drawn in steps, three pixels apart at most."""
    for (x, y), (to_x, to_y) in pairwise(points):
        for n in range(max(1, int(abs(to_x - x) / 3))):
            yield x + 3 * n, y
        for n in range(max(1, int(abs(to_y - y) / 3))):
            yield to_x, y + (3 * n if to_y > y else -3 * n)
    yield from ((x, y) for x, y in points[-1:])
