"""What the commands of recipes and runs show, what `advise` shows, and what the guard shows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cuecraft.cli.display.console import page
from cuecraft.cli.display.results import print_next
from cuecraft.core.scores import readable

_COSTS = (("seconds", "s"), ("memory_mib", "MiB at the highest"))
_STYLES = {"equal": "green", "within tolerance": "green", "differs": "bold red", "not compared": "dim"}


def print_run(record: Mapping[str, Any], expect: Mapping[str, Any] | None) -> None:
    """Print what a run came to, next to what its recipe expects."""
    table = Table(title=Text(f"{record['name']}: {record['status']}"), title_justify="left")
    expected = expect["metrics"] if expect else {}
    for name in ("metric", "value", *(["expected"] if expected else [])):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for called, (value, wanted) in _shown_metrics(record["metrics"], expected).items():
        shown = "" if wanted is None else f"{wanted:.3f}" + (f" ± {expect['tolerance']:.3f}" if expect else "")
        table.add_row(Text(called), "none" if value is None else f"{value:.3f}", *([shown] if expected else []))
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
        print_next(record["folder"])
    page.print(f"check it: cuecraft verify {shlex.quote(record['folder'])}", markup=False, soft_wrap=True)


def _shown_metrics(
    metrics: Mapping[str, float], expected: Mapping[str, float]
) -> dict[str, tuple[float | None, float | None]]:
    """Return what was found and what is expected, by names for people; an error and minus the error are one line."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in [*metrics, *(own for own in expected if own not in metrics)]:
        called, sign = readable(name, 1.0)
        value, wanted = (None if own is None else sign * own for own in (metrics.get(name), expected.get(name)))
        if called not in found or wanted is not None:
            found[called] = (value, wanted)
    return found


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
    scores = [_test_score(row["metrics"]) for row in rows]
    column = "test accuracy" if {name for name, _ in scores} <= {"accuracy", ""} else "test score"
    for name in ("run", "method", "status", column, "seconds", "begun"):
        table.add_column(name, justify="right" if name in (column, "seconds") else "left")
    for row, (measure, score) in zip(rows, scores, strict=True):
        named = "" if column == "test accuracy" else f"{measure.replace('_', ' ')} "
        table.add_row(
            Text(row["folder"]),
            Text(row["method"]),
            row["status"],
            "-" if score is None else f"{named}{score:.3f}",
            f"{row['seconds']:.1f}",
            row["started"][:16].replace("T", " "),
        )
    page.print(table)


def _test_score(metrics: Mapping[str, float]) -> tuple[str, float | None]:
    """Return name and value of the primary score on test rows, which stands first of them; None for none."""
    found = ((name.removeprefix("test_"), value) for name, value in metrics.items() if name.startswith("test_"))
    return next(found, ("", None))


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
