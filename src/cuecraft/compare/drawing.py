"""Figures as inline SVG: text stays text, and colours come from the page, so that a dark page has dark figures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
