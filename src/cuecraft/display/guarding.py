"""What the commands of the guard show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cuecraft.display.console import page


def print_screenings(document: Mapping[str, Any]) -> None:
    """Print what a guard says of texts: a line for each, and one for each finding."""
    for row in document["texts"]:
        shown = " ".join("".join(letter if letter.isprintable() else " " for letter in row["text"][:200]).split())
        page.print(f"{row['verdict']:>5}  {shown}", markup=False, soft_wrap=True)
        for found in row["findings"]:
            hidden = ", in a hidden text" if found["where"] == "hidden" else ""
            told = f"       {found['kind']} {found['id']} ({found['severity']}{hidden}): {found['reason']}"
            page.print(f"{told}: {found['excerpt']!r}", markup=False, soft_wrap=True)
        for name, score in row["scores"].items():
            page.print(f"       {name}: {score:.2f}", markup=False, soft_wrap=True)
    page.print(f"{document['flagged']:,} of {document['screened']:,} texts flagged")


def print_guard_rates(document: Mapping[str, Any]) -> None:
    """Print how well a guard tells attacks from other texts."""
    title = f"{document['rows']:,} texts of {document['file']}; attacks: {', '.join(document['attack_labels'])}"
    table = Table(title=title, title_justify="left")
    for name in ("what", "precision", "recall", "false positives"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in document["rates"]:
        table.add_row(row["name"], *(_rate(row[key]) for key in ("precision", "recall", "false_positive_rate")))
    page.print(table)
    page.print("in brackets 95% Wilson intervals")


def print_guard_data(document: Mapping[str, Any]) -> None:
    """Print what texts were written."""
    for part, counts in document["parts"].items():
        shown = ", ".join(f"{count:,} {label}" for label, count in counts.items())
        page.print(f"{document['folder']}/{part}.jsonl: {shown}", markup=False, soft_wrap=True)
    if not document["bastioncorpus"]:
        page.print("without bastioncorpus, which is not installed: pip install bastioncorpus")


def _rate(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval_95"]
    return f"{found['value']:.3f} ({low:.3f} to {high:.3f})"
