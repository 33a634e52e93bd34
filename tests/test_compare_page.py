"""The report of a comparison in a real browser: at two widths, light and dark."""

import os
import re
from pathlib import Path

import pytest

from cuecraft.study.compare import plots
from cuecraft.study.compare.report import render_report
from cuecraft.study.compare.schema import Comparison

DOCUMENT = Path(__file__).parents[1] / "benchmarks" / "results" / "compare_sst-2.json"


@pytest.fixture(scope="module")
def document():
    return Comparison.model_validate_json(DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["autoprompt", "straight-through"])
def test_the_label_of_an_axis_is_inside_its_figure(document, name):
    svg = plots.search_plot(document, name)
    size, left = re.search(r'font-size: ([\d.]+)px[^>]* x="([\d.-]+)"[^>]*>training loss', svg).groups()
    assert float(left) >= 0.8 * float(size)  # an upright line's base is at its right


# Texts that the browser draws across the border of their figure, in the browser's own font.
CLIPPED = """() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map((text) => text.textContent);
})"""


@pytest.mark.slow
@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_at_two_widths_light_and_dark(browser, document, tmp_path_factory, width, look):
    """With a picture of each; CUECRAFT_SCREENSHOTS names a folder for them."""
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    file = tmp_path_factory.getbasetemp() / "report.html"
    if not file.exists():
        file.write_text(render_report(document), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 1200}, color_scheme=look)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLIPPED) == []
    folder = Path(os.environ.get("CUECRAFT_SCREENSHOTS", file.parent))
    picture = folder / f"report-{width}-{look}.png"
    page.screenshot(path=picture)
    page.close()
    counts = image.open(picture).convert("L").histogram()
    assert (sum(counts[:64]) if look == "dark" else sum(counts[192:])) > 0.75 * sum(counts)
