"""What the commands of recipes and runs show."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cuecraft.display.console import page

_COSTS = (("seconds", "s"), ("memory_mib", "MiB at the highest"))
_STYLES = {"equal": "green", "within tolerance": "green", "differs": "bold red", "not compared": "dim"}


def print_run(record: Mapping[str, Any], expect: Mapping[str, Any] | None) -> None:
    """Print what a run came to, next to what its recipe expects."""
    table = Table(title=Text(f"{record['name']}: {record['status']}"), title_justify="left")
    expected = expect["metrics"] if expect else {}
    for name in ("metric", "value", *(["expected"] if expected else [])):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, value in record["metrics"].items():
        shown = f"{expected[name]:.3f} ± {expect['tolerance']:.3f}" if expect and name in expected else ""
        table.add_row(Text(name.replace("_", " ")), f"{value:.3f}", *([shown] if expected else []))
    for name in expected:
        if name not in record["metrics"]:
            table.add_row(Text(name.replace("_", " ")), "none", f"{expected[name]:.3f}")
    page.print(table)
    memory = "" if record["peak_bytes"] is None else f", {record['peak_bytes'] / 2**20:,.0f} MiB at the highest"
    sessions = "" if record["sessions"] == 1 else f" in {record['sessions']} sessions"
    page.print(f"{record['seconds']:.1f} s{sessions}{memory}")
    told = [f"{expect[key]:,.0f} {unit}" for key, unit in _COSTS if expect and expect[key] is not None]
    if told:
        page.print(f"when the recipe was written: {', '.join(told)}")
    if record["as_expected"] is not None:
        page.print("as the recipe expects" if record["as_expected"] else "not what the recipe expects")
    page.print(f"run: {record['folder']}", markup=False, soft_wrap=True)
    if "artifact" in record["artifacts"]:
        page.print(
            f'try it: cuecraft predict {shlex.quote(record["folder"])} "some text"', markup=False, soft_wrap=True
        )
    page.print(f"check it: cuecraft verify {shlex.quote(record['folder'])}", markup=False, soft_wrap=True)


def print_run_comparison(document: Mapping[str, Any]) -> None:
    """Print how two runs compare; the last line is the verdict."""
    table = Table()
    for name in ("what", "first", "second", ""):
        table.add_column(name, overflow="fold")
    for row in document["rows"]:
        cells = (Text(row[name]) for name in ("what", "before", "now"))
        table.add_row(*cells, Text(row["verdict"], style=_STYLES[row["verdict"]]))
    page.print(table)
    page.print(document["reason"], markup=False, soft_wrap=True)


def print_differences(rows: Sequence[Mapping[str, str]]) -> None:
    """Print in what two runs were asked for and made on something else."""
    if not rows:
        page.print("asked for the same, and made on the same")
        return
    table = Table()
    for name in ("key", "first", "second"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in ("key", "before", "now")))
    page.print(table)


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print runs, a line each."""
    if not rows:
        page.print("no runs here; cuecraft run makes one")
        return
    table = Table()
    for name in ("run", "method", "status", "test accuracy", "seconds", "begun"):
        table.add_column(name, justify="right" if name in ("test accuracy", "seconds") else "left")
    for row in rows:
        accuracy = row["metrics"].get("test_accuracy")
        table.add_row(
            Text(row["folder"]),
            Text(row["method"]),
            row["status"],
            "-" if accuracy is None else f"{accuracy:.3f}",
            f"{row['seconds']:.1f}",
            row["started"][:16].replace("T", " "),
        )
    page.print(table)


def print_recipes(rows: Sequence[Mapping[str, str]]) -> None:
    """Print recipes, a line each."""
    table = Table()
    for name in ("recipe", "job", "needs", "what it is"):
        table.add_column(name)
    for row in rows:
        table.add_row(Text(row["name"]), row["job"], row["needs"], Text(row["description"]))
    page.print(table)
    page.print("run one: cuecraft run NAME; make it your own: cuecraft recipe cp NAME FILE")


def print_check(document: Mapping[str, Any]) -> None:
    """Print what a recipe that can be run would use."""
    page.print(f"{document['recipe']}: can be run ({document['job']})", markup=False, soft_wrap=True)
    page.print(f"model: {document['model']}", markup=False, soft_wrap=True)
    for name, entry in document["data"].items():
        page.print(f"{name}: {entry['rows']} rows, {entry['sha256'][:12]}", markup=False, soft_wrap=True)
