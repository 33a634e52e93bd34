"""The demo's result as one HTML page that stands alone.

Its template draws with boxes, so that the demo needs no drawing package.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

TEMPLATE = "demo.html.j2"


def render_demo(document: Mapping[str, Any], title: str) -> str:
    """Return the page.

    Args:
        document: of `cuecraft demo --json`.
        title: data, model and sizes in a line.
    """
    import jinja2  # a requirement of torch

    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    lows, highs = zip(*(row["interval_95"] for row in document["leaderboard"]), strict=True)
    left, right = min(lows), max(highs)
    span = max(right - left, 0.01)

    def place(value: float) -> str:
        """Return where a value stands on the drawn scale, in percent of its width."""
        return f"{100 * (value - left) / span:.2f}"

    environment.filters["place"] = place
    return environment.from_string(source).render(document=document, title=title, left=left, right=right) + "\n"
