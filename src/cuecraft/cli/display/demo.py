"""What the demo shows in the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from cuecraft.cli.display.console import page
from cuecraft.cli.display.results import print_predictions

if TYPE_CHECKING:
    from cuecraft.study.compare.demo import DemoResult

_MINUTE = 60


def demo_document(result: DemoResult, folder: str, seconds: float) -> dict[str, Any]:
    """Return the demo's result as a JSON document."""
    rows = [
        {
            "method": row.name,
            "test_accuracy": row.test.primary,
            "interval_95": list(row.interval),
            "dev_accuracy": row.dev.primary,
            "dev_loss": row.dev.loss,
            "seconds": round(row.seconds, 2),
            "tuned_parameters": row.tuned_parameters,
            "artifact_bytes": row.stored_bytes,
        }
        for row in result.leaderboard.rows
    ]
    prompt = result.artifact.manifest.prompt
    return {
        "leaderboard": rows,
        "winner": result.winner.name,
        "prompt": prompt.described,
        "prompt_kind": prompt.kind,
        "tuned_parameters": result.winner.tuned_parameters,
        "nearest_words": list(result.nearest),
        "best_words": list(result.words),
        "test_size": result.test_size,
        "artifact": folder,
        "seconds": round(seconds, 1),
        "predictions": [_prediction(*shown) for shown in result.shown],
    }


def _prediction(text: str, truth: str, found: Mapping[str, float]) -> dict[str, Any]:
    """Return a text, its true class and the class probabilities as `predict --json` has them."""
    best = max(found, key=lambda name: found[name])
    answered = {"label": best, "probabilities": found, "value": best, "confidence": found[best], "options": found}
    return {"text": text, "true_label": truth, **answered}


def print_demo(document: Mapping[str, Any], task_line: str) -> None:
    """Print the demo's result as a person reads it."""
    table = Table(title=task_line, title_justify="left")
    for name in ("method", "accuracy", "95% interval", "time", "size"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in document["leaderboard"]:
        low, high = row["interval_95"]
        is_winner = row["method"] == document["winner"]
        table.add_row(
            row["method"] + (" *" if is_winner else ""),
            f"{row['test_accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            _time(row["seconds"]),
            _size(row["artifact_bytes"]),
            style="bold" if is_winner else None,
        )
    page.print(table)
    page.print("* kept: the choice of auto, by held-out folds of train and dev; the test set chooses nothing")
    page.print("time of search and training; size of what is stored\n")
    _print_found(document)
    page.print()
    print_predictions(document["predictions"])
    folder = shlex.quote(document["artifact"])
    steps = {
        f'cuecraft predict {folder} "a joy from start to finish"': "answer a text",
        f"cuecraft show {folder}": "what the artifact holds",
        f"cuecraft serve {folder}": "a page and an HTTP service (extra: serve)",
        "cuecraft tune reviews.csv": "your own texts, columns text and label",
    }
    page.print()
    width = max(map(len, steps))
    for command, what in steps.items():
        page.print(Text.assemble((f"{command:<{width}}", "bold"), f"  {what}"), soft_wrap=True)


def _print_found(document: Mapping[str, Any]) -> None:
    """Print the words, or what the vectors are."""
    words = [repr(words) for words in document["best_words"]]
    lines = [("best words", words[0]), *(("  together with", other) for other in words[1:])]
    if document["prompt_kind"] != "hard":
        count = f"{document['tuned_parameters']:,} numbers"
        lines.append(("vectors", f"{count}: {document['prompt']}".replace("\n", "\\n")))
    if document["nearest_words"]:
        lines.append(("nearest words", " | ".join(document["nearest_words"])))
    lines += [("kept in", document["artifact"]), ("report", f"{document['artifact']}/report.html")]
    for name, value in lines:
        page.print(Text.assemble((f"{name:<15} ", "dim"), value), soft_wrap=True)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < _MINUTE else f"{seconds / _MINUTE:.1f} min"


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"
