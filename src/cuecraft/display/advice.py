"""What `advise` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cuecraft.display.console import page


def print_advice(document: Mapping[str, Any]) -> None:
    """Print what `advise` found; the last line is the command to run next."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _advice_rows(document).items():
        table.add_row(name, Text(value))
    page.print(table)
    methods = Table(title="methods that fit, the first one to try in front", title_justify="left")
    for name in ("method", "about", "memory, about", "why"):
        methods.add_column(name, no_wrap=name != "why")
    for row in document["methods"]:
        methods.add_row(row["name"], _duration(row["about_seconds"]), _size(row["about_bytes"]), row["why"])
    if document["methods"]:
        page.print(methods)
    for finding in document["findings"]:
        page.print(f"- {finding['says']}", markup=False, soft_wrap=True)
    tuning = document["tuning"]
    page.print(f"worth tuning: {tuning['worth']}; {tuning['why']}\n", markup=False, soft_wrap=True)
    page.print("next:", style="bold")
    page.print(document["next"], markup=False, soft_wrap=True)


def _advice_rows(document: Mapping[str, Any]) -> dict[str, str]:
    data, lengths, measured = document["data"], document["lengths"], document["measurement"]
    limit = "no limit" if lengths["limit"] is None else f"{lengths['room']} of {lengths['limit']} tokens are for text"
    rows = {
        "rows": f"{data['rows']:,}: {data['labelled']:,} with a label, {data['unlabelled']:,} without",
        "classes": ", ".join(f"{name} {count:,}" for name, count in data["classes"].items()),
        "duplicates": f"{data['duplicates']:,} rows; {data['contradictory_texts']:,} texts under several labels",
        "text, tokens": f"median {lengths['median']:.0f}, 95% up to {lengths['p95']:.0f}, longest {lengths['max']}",
        "cut": f"{lengths['cut']:,} texts ({lengths['cut_share']:.1%}); {limit}",
        "model": f"{document['model']['name']} ({document['model']['head']}, {document['model']['dtype']})",
    }
    if document["label_words"]:
        words = document["label_words"].items()
        rows["label words"] = "; ".join(
            f"{label} = {', '.join(own['words'])}"
            + (f" ({min(own['tokens'])} tokens)" if own["tokens"] and min(own["tokens"]) > 1 else "")
            for label, own in words
        )
    if measured:
        rows["measured"] = f"{measured['rows']:,} texts in {measured['seconds']} s"
        rows["measured"] += f", about {measured['tokens_per_second']:,.0f} tokens/s"
    if document["answers"]:
        rows["untuned answers"] = ", ".join(f"{name} {share:.0%}" for name, share in document["answers"].items())
    if document["majority_accuracy"] is not None:
        rows["largest class"] = f"accuracy {document['majority_accuracy']:.3f}"
    names = {"zero_shot": "zero-shot", "calibrated": "calibrated, cross-validated", "endpoint": "endpoint"}
    for key, name in names.items():
        found = document[key]
        if found:
            low, high = found["interval_95"]
            rows[name] = f"accuracy {found['accuracy']:.3f} ({low:.3f} to {high:.3f}, {found['rows']:,} texts)"
    if document["forms"]:
        forms = document["forms"]
        rows["plain or chat"] = f"{forms['chosen']}: calibrated accuracy {forms['plain_accuracy']:.3f} plain, "
        rows["plain or chat"] += f"{forms['chat_accuracy']:.3f} by the chat template ({forms['rows']:,} texts)"
    if document["endpoint"]:
        asked = document["endpoint"]
        rows["endpoint"] += f"; {asked['no_class']} answers no class; {asked['seconds']} s, "
        rows["endpoint"] += "tokens not reported" if asked["tokens"] is None else f"{asked['tokens']:,} tokens"
        rows["texts were sent to"] = f"{asked['address']} ({asked['model']})"
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, seconds):.0f} s"


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
