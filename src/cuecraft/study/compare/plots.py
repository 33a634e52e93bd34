"""The figures of the report, each made of the document alone, as inline SVG.

Text stays text, and colours come from the page, so that a dark page has dark figures.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


from collections.abc import Sequence
from itertools import groupby, pairwise

from cuecraft.study.compare.schema import Cell, Comparison, Estimate, Row

#: Colours that no figure has otherwise; each stands for a variable of the page's style sheet.
INK, MUTED, LINE, ACCENT, REFERENCE = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = tuple(f"#0102{number:02d}" for number in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", REFERENCE: "reference"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES, start=1)
}
_PREAMBLE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*pt"', re.DOTALL)
_HEIGHT = re.compile(r'(<svg[^>]*?) height="[^"]*pt"', re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
# The page's own font is meant; older matplotlib writes all of the font in one property.
_FONT_FAMILY = re.compile(r'font-family: [^;"]*;? ?')
_FONT = re.compile(r'(\bfont: [^;"]*?px) [^;"]*')
_IDS = re.compile(r'(\bid="|href="#|url\(#)')
_WIDE, SMALL = 4.8, 3.3  # inches: about the width of a phone, and a part of a page's
_TEXT, SMALL_TEXT = 9.5, 8.5
_SHOWN_VECTORS = 16


def spoken(name: str) -> str:
    """Return the name of a score as people write it: ``"example_f1"`` gives ``"example F1"``."""
    return " ".join({"f1": "F1", "neg": "minus"}.get(word, word) for word in name.split("_"))


def series(number: int) -> str:
    """Return the colour of a series; the seventh has the first's again."""
    return SERIES[number % len(SERIES)]


@contextmanager
def figure(width: float, height: float, size: float) -> Iterator[Figure]:
    """Give a figure of so many inches with text of so many points; matplotlib's global state is left as it was."""
    import matplotlib
    from matplotlib.figure import Figure as Empty

    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cuecraft",
        "font.size": size,
        "axes.labelsize": size,
        "xtick.labelsize": size,
        "ytick.labelsize": size,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": INK,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
    }
    with matplotlib.rc_context(style):
        yield Empty(figsize=(width, height), layout="constrained")


def axes(drawn: Figure) -> Axes:
    """Return the one pair of axes of a figure, on no background."""
    found = drawn.add_subplot()
    found.patch.set_visible(False)
    drawn.patch.set_visible(False)
    return found


def as_svg(drawn: Figure, label: str, name: str) -> str:
    """Return a figure as an SVG element to stand in a page.

    Args:
        drawn: the figure.
        label: what it shows, for those who cannot see it.
        name: unlike that of any other figure of the page; it begins the ids inside.
    """
    import html
    import warnings

    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Text is laid out by the reader's browser in the reader's fonts, so a glyph missing here does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # The layout is done and fixed here: in savefig it reserves space for other tick labels than it then draws.
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = _PREAMBLE.sub("", buffer.getvalue(), count=1)
    svg = _METADATA.sub("", _HEIGHT.sub(r"\1", _SIZE.sub(r"\1", svg)))
    svg = _FONT.sub(r"\1 system-ui, sans-serif", _FONT_FAMILY.sub("", svg))
    svg = _IDS.sub(rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def with_results(document: Comparison) -> list[tuple[Row, Estimate]]:
    """Return the rows that were not refused, with their primary score."""
    return [(row, row.score) for row in document.rows if row.score is not None]


def score_plot(document: Comparison) -> str:
    """Draw each method's primary score with its 95% interval, each seed as a small mark."""
    rows = with_results(document)
    with figure(_WIDE, 0.9 + 0.3 * len(rows), _TEXT) as drawn:
        plot = axes(drawn)
        for place, (row, found) in enumerate(rows):
            color = _color(document, row)
            seeds = [cell.test.score for cell in document.cells if cell.name == row.name]
            ends = [own for own in (found.low, found.high) if own is not None]
            plot.plot(ends, [place] * len(ends), color=color, linewidth=2.2, alpha=0.45)
            plot.plot(seeds, [place] * len(seeds), "|", color=color, markersize=7, markeredgewidth=1)
            plot.plot([found.mean], [place], "o", color=color, markersize=6)
            if row.name == document.untuned:
                plot.axvline(found.mean, color=REFERENCE, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
        plot.set_yticks(range(len(rows)), [row.name for row, _ in rows])
        plot.set_ylim(len(rows) - 0.4, -0.6)
        plot.grid(axis="x")
        plot.spines["left"].set_visible(False)
        score = spoken(document.task.primary)
        plot.set_xlabel(f"test {score}")
        words = "; ".join(f"{row.name} {a.mean:.3f} ({a.low:.3f} to {a.high:.3f})" for row, a in rows)
        return as_svg(drawn, f"Test {score} of each method with its 95% interval: {words}", "accuracy")


def time_plot(document: Comparison) -> str:
    """Draw the primary score against training time, on a logarithmic scale."""
    rows = with_results(document)
    seconds = [max(row.train_seconds or 0.0, 0.01) for row, _ in rows]
    heights = [found.mean for _, found in rows]
    with figure(_WIDE, max(3.2, 0.9 + 0.24 * len(rows)), _TEXT) as drawn:
        plot = axes(drawn)
        plot.set_xscale("log")
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plot.xaxis.set_minor_formatter(lambda value, _: "")
        span = max(max(heights) - min(heights), 0.02)
        # Names stand in a column next to the points, since methods of like score and time would cover each other's.
        places = _apart(heights, 1.1 * span / max(len(rows), 12))
        low, high = min(*heights, *places), max(*heights, *places)
        plot.set_xlim(min(seconds) / 1.5, max(seconds) * 1.5)
        plot.set_ylim(low - 0.06 * span, high + 0.06 * span)
        for (row, _), x, y, place in zip(rows, seconds, heights, places, strict=True):
            color = _color(document, row)
            plot.plot([x], [y], "o", color=color, markersize=6)
            plot.annotate(
                row.name,
                (x, y),
                xytext=(1.03, place),
                textcoords=plot.get_yaxis_transform(),
                va="center",
                color=INK if color == MUTED else color,
                fontweight="bold" if row.name == document.best else "normal",
                arrowprops={
                    "arrowstyle": "-",
                    "color": LINE,
                    "linewidth": 0.7,
                    "relpos": (0, 0.5),
                    "shrinkA": 2,
                    "shrinkB": 3,
                },
                annotation_clip=False,
            )
        plot.grid(axis="both", which="major")
        plot.set_xlabel("seconds of search and training (logarithmic)")
        score = spoken(document.task.primary)
        plot.set_ylabel(f"test {score}")
        words = "; ".join(f"{r.name} {s:.1f} s, {h:.3f}" for (r, _), s, h in zip(rows, seconds, heights, strict=True))
        return as_svg(drawn, f"{score.capitalize()} against training time: {words}", "time")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights moved so far that neighbours are `gap` apart, in the same order, about the same middle."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    moved = [heights[place] for place in order]
    for _ in range(100):
        for lower in range(len(moved) - 1):
            short = gap - (moved[lower + 1] - moved[lower])
            if short > 0:
                moved[lower] -= short / 2
                moved[lower + 1] += short / 2
    return [moved[order.index(place)] for place in range(len(heights))]


def _color(document: Comparison, row: Row) -> str:
    if row.name == document.best:
        return ACCENT
    return REFERENCE if row.name == document.untuned else MUTED


def confusion_plot(document: Comparison, row: Row) -> str:
    """Draw a method's confusion matrix: the share of each true class, and counts over all seeds."""
    from matplotlib.patches import Rectangle

    counts, labels = row.confusion or [], document.task.labels
    size = len(labels)
    with figure(SMALL, 1.1 + 0.34 * size, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        for true, line in enumerate(counts):
            total = sum(line) or 1
            for said, count in enumerate(line):
                color = ACCENT if true == said else REFERENCE
                share = count / total
                plot.add_patch(Rectangle((said, true), 0.94, 0.9, color=color, alpha=0.06 + 0.5 * share, linewidth=0))
                plot.text(said + 0.47, true + 0.47, str(count), ha="center", va="center")
        plot.set_xlim(0, size)
        plot.set_ylim(size, 0)
        # Long class names next to each other would overlap.
        tilted = size > 3 or max(map(len, labels)) > 9
        plot.set_xticks(
            [n + 0.47 for n in range(size)], labels, rotation=30 * tilted, ha="right" if tilted else "center"
        )
        plot.set_yticks([n + 0.47 for n in range(size)], labels)
        plot.tick_params(colors=MUTED)
        for side in plot.spines.values():
            side.set_visible(False)
        plot.set_xlabel("predicted")
        plot.set_ylabel("true")
        words = "; ".join(
            f"true {label}: " + ", ".join(f"{count} {said}" for said, count in zip(labels, line, strict=True))
            for label, line in zip(labels, counts, strict=True)
        )
        return as_svg(drawn, f"Confusion matrix of {row.name}. {words}", f"confusion-{place_of(document, row.name)}")


def loss_ceiling(document: Comparison) -> float:
    """Return the top of all learning curves: a quarter above the greatest loss that any method starts from."""
    tuned = [cell for cell in document.cells if len(cell.steps) > 1]
    starts = [next((s.dev_loss for s in cell.steps if s.dev_loss is not None), 0.0) for cell in tuned]
    return 1.25 * max([*starts, 0.01])


def curve_plot(document: Comparison, name: str, ceiling: float) -> str:
    """Draw a method's loss by step, on dev (full) and on the training examples (faint), a line for each seed."""
    cells = [cell for cell in document.cells if cell.name == name]
    with figure(SMALL, 2.1, SMALL_TEXT) as drawn:
        plot = axes(drawn)
        for number, cell in enumerate(cells):
            color = series(number)
            train = [(x, s.train_loss) for x, s in enumerate(cell.steps) if s.train_loss is not None]
            dev = [(x, s.dev_loss) for x, s in enumerate(cell.steps) if s.dev_loss is not None]
            best = [(x, s.dev_loss) for x, s in enumerate(cell.steps) if s.best and s.dev_loss is not None]
            plot.plot(*zip(*train, strict=True), color=color, linewidth=0.9, alpha=0.4) if train else None
            plot.plot(*zip(*dev, strict=True), color=color, linewidth=1.5) if dev else None
            plot.plot(*best[-1], "o", color=color, markersize=4.5) if best else None
        for x, phase in _phases(cells[0]):
            plot.axvline(x, color=LINE, linewidth=0.8)
            plot.text(x, ceiling, f" {phase}", va="top", color=MUTED, fontsize=SMALL_TEXT - 1)
        plot.set_ylim(0, ceiling)
        plot.grid(axis="y")
        plot.set_xlabel("step")
        plot.set_ylabel("loss (nats)")
        words = "; ".join(f"seed {cell.seed}: {_loss_words(cell)}" for cell in cells)
        return as_svg(drawn, f"Learning curves of {name}. {words}", f"curve-{place_of(document, name)}")


def _phases(cell: Cell) -> list[tuple[int, str]]:
    """Return where each phase but the first begins, and its name where that is new.

    A run of fewer than three steps, such as a handover or the members of a soup, is no phase.
    """
    runs = [list(run) for _, run in groupby(enumerate(cell.steps), key=lambda entry: entry[1].phase)]
    long = [(run[0][0], run[0][1].phase) for run in runs if len(run) > 2]
    return [(x, name if name != before else "") for (_, before), (x, name) in pairwise(long)]


def _loss_words(cell: Cell) -> str:
    losses = [step.dev_loss for step in cell.steps if step.dev_loss is not None]
    return f"dev loss {losses[0]:.3f} to {min(losses):.3f} in {len(cell.steps) - 1} steps" if losses else "no dev loss"


def search_plot(document: Comparison, name: str) -> str:
    """Draw a discrete search: the training loss of the words by step, with a mark where they changed."""
    cells = [cell for cell in document.cells if cell.name == name]
    with figure(_WIDE, 2.3, _TEXT) as drawn:
        plot = axes(drawn)
        for number, cell in enumerate(cells):
            color = series(number)
            losses = [
                (x, s.train_loss)
                for x, s in enumerate(cell.steps)
                if s.train_loss is not None and (s.accepted is not None or s.prompt is not None)
            ]
            plot.step(*zip(*losses, strict=True), where="post", color=color, linewidth=1.4) if losses else None
            taken = [(x, loss) for x, _, loss, _, _ in search_steps(cell) if loss is not None]
            plot.plot(*zip(*taken, strict=True), "o", color=color, markersize=3.5) if taken else None
        plot.grid(axis="y")
        plot.set_xlabel("step of the search")
        plot.set_ylabel("training loss (nats)")
        words = "; ".join(f"seed {cell.seed}: {len(search_steps(cell))} prompts in words" for cell in cells)
        return as_svg(drawn, f"Search by {name}. {words}", f"search-{place_of(document, name)}")


def search_steps(cell: Cell) -> list[tuple[int, str, float | None, float | None, bool]]:
    """Return where the words of a search changed: step, words, training loss, dev loss, and whether best so far."""
    found = []
    before = None
    for number, step in enumerate(cell.steps):
        if step.prompt is not None and step.accepted is not False and step.prompt != before:
            found.append((number, step.prompt, step.train_loss, step.dev_loss, step.best))
            before = step.prompt
    return found


def words_plot(document: Comparison, cell: Cell) -> str:
    """Draw the words nearest to each vector of a soft prompt, the nearer the stronger in colour."""
    from matplotlib.patches import Rectangle

    shown = (cell.neighbours or [])[:_SHOWN_VECTORS]
    width = max(len(place.words) for place in shown)
    with figure(_WIDE, 0.5 + 0.29 * len(shown), _TEXT - 0.5) as drawn:
        plot = axes(drawn)
        for line, place in enumerate(shown):
            for column, (word, cosine) in enumerate(zip(place.words, place.cosines, strict=True)):
                alpha = 0.06 + 0.5 * max(0.0, min(1.0, cosine))
                plot.add_patch(Rectangle((column, line), 0.96, 0.88, color=ACCENT, alpha=alpha, linewidth=0))
                plot.text(column + 0.48, line + 0.46, visible(word, 12), ha="center", va="center")
        plot.set_xlim(0, width)
        plot.set_ylim(len(shown), 0)
        plot.set_yticks([n + 0.46 for n in range(len(shown))], [str(n + 1) for n in range(len(shown))])
        plot.set_xticks([])
        for side in plot.spines.values():
            side.set_visible(False)
        plot.set_ylabel("vector")
        words = "; ".join(f"{n}: {visible(place.words[0], 30)}" for n, place in enumerate(shown, start=1))
        name = f"words-{place_of(document, cell.name)}"
        return as_svg(drawn, f"Words nearest to the vectors of {cell.name}, seed {cell.seed}. {words}", name)


def visible(word: str, length: int) -> str:
    """Return a word of the vocabulary as it can be seen: blanks as dots, what has no shape escaped, and cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word).replace(" ", "·")
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def place_of(document: Comparison, name: str) -> int:
    """Return the place of a method among the rows, for ids."""
    return [row.name for row in document.rows].index(name)
