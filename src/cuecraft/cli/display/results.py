"""What the commands that tune, compare and use prompts show."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from cuecraft.cli.display.console import page
from cuecraft.core.scores import readable

if TYPE_CHECKING:
    from cuecraft.artifact import Artifact
    from cuecraft.artifact.manifest import CalibrationEntry
    from cuecraft.study.compare.formats import TextTable
    from cuecraft.study.compare.schema import Comparison
    from cuecraft.task import AnswerSpace

_SHOWN_CUES = 5
_SHOWN_OPTIONS = 40
_SHOWN_BIASES = 10
_TRIED = {"name", "loss", "sd", "folds", "rows", "seconds"}  # of a line of the leaderboard, all but its score
#: Fields of answer spaces that have a line of their own, or are as long as the data.
_OPTIONS = ("kind", "labels", "words", "classes", "numbers", "candidates", "seen", "followed")


def print_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print texts with what is answered to them, and its confidence."""
    for found in predictions:
        truth = f"  (truth: {found['true_label']})" if "true_label" in found else ""
        cut = "  (cut at its end to fit)" if found.get("truncated") else ""
        answer, share = shown_answer(found), found["confidence"]
        page.print(f"{answer:>12} {share:6.1%}  {found['text']}{truth}{cut}", markup=False, soft_wrap=True)


def shown_answer(found: Mapping[str, Any]) -> str:
    """Return an answer as one line shows it: what `shown_value` does, the text of a choice, or a number's interval."""
    value, options = found["value"], found.get("options", {})
    if "interval" in found:
        return "{} ({} to {})".format(*map(shown_value, (value, *found["interval"])))
    if isinstance(value, int) and "label" not in found:  # the place of the option that a text brought
        return str(list(options)[value])
    if isinstance(value, list) and all(isinstance(own, str) and own in options for own in value):
        return ", ".join(f"{own} {options[own]:.0%}" for own in value) or "-"
    return shown_value(value)


def shown_scores(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Return known scores by name as a person reads them: an error is shown without the minus that makes it a score."""
    return dict(readable(name, value) for name, value in scores.items() if value is not None)


def shown_value(value: Any) -> str:
    """Return an answer as one line shows it: a label, a set, a number, or spans with their labels."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value)) or "-"
    if isinstance(value, Mapping):
        own = value.get("text", f"{value.get('start')}-{value.get('end')}")
        return f"{value['label']}={own}" if "label" in value else json.dumps(value, ensure_ascii=False)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def print_tuned(document: Mapping[str, Any]) -> None:
    """Print what `tune` found, with one seed or several."""
    _print_seeds(document) if "spread" in document else _print_metrics(document)


def _print_metrics(document: Mapping[str, Any]) -> None:
    """Print what `tune` found."""
    table = Table(show_header=False)
    table.add_row("method", Text(document["method"]))
    table.add_row("prompt" if document["tuned"] else "prompt, untuned", Text(repr(document["prompt"])))
    if document["answers"] != "labels":
        table.add_row("answers", document["answers"])
    if document["label_words"]:
        table.add_row("label words", Text(_shown_words(document["label_words"])))
    elif document["classes"]:
        table.add_row("classes", Text(_shown_classes(document["classes"])))
    if document.get("vocabulary"):
        counts = (f"{row['tokens']:,} {row['filter']}" for row in document["vocabulary"])
        table.add_row("tokens left", Text("\n".join(counts)))
    if document.get("chat"):
        table.add_row("template", "the tokenizer's chat template")
    for name, value in shown_scores(document["metrics"]).items():
        table.add_row(name, f"{value:.3f}")
    primary = f"test_{document['primary']}"
    if document["metrics"].get(primary) is None:
        table.add_row(readable(primary, 0.0)[0], "not measured: no test rows were given")
    table.add_row("seconds", f"{document['seconds']:.1f}")
    table.add_row("artifact", Text(str(document["artifact"])))
    page.print(table)
    if document["verdict"]:
        _print_tried(document["leaderboard"])
        _print_verdict(document["verdict"])
    if "cues" in document:
        _print_cues(document)


def _shown_words(words: Mapping[str, Sequence[str]]) -> str:
    """Return label words by name, the first ones of many."""
    named = [f"{label} = {', '.join(own)}" for label, own in list(words.items())[:_SHOWN_OPTIONS]]
    more = [f"and {len(words) - _SHOWN_OPTIONS} more"] if len(words) > _SHOWN_OPTIONS else []
    return "; ".join(named + more)


def _shown_classes(names: Collection[Any]) -> str:
    """Return the names of classes that a class head answers with, the first ones of many."""
    if not names:
        return ""
    more = f", and {len(names) - _SHOWN_OPTIONS} more" if len(names) > _SHOWN_OPTIONS else ""
    return ", ".join(map(str, list(names)[:_SHOWN_OPTIONS])) + more + " (class head)"


def _print_cues(document: Mapping[str, Any]) -> None:
    """Print the best of the cues that were tried without labels."""
    rows = document["cues"]
    title = f"{len(rows)} cues ({document['task_type']}), by {document['texts']} texts without labels; the first ones"
    table = Table(title=title, title_justify="left")
    table.add_column("cue")
    for name in rows[0]["scores"]:
        table.add_column(name.replace("-", " "), justify="right")
    for row in rows[:_SHOWN_CUES]:
        values = ("-" if value is None else f"{value:.3f}" for value in row["scores"].values())
        table.add_row(Text(repr(row["cue"])), *values)
    page.print(table)


def _print_seeds(document: Mapping[str, Any]) -> None:
    """Print what `tune --seeds` found: a line for each seed, mean and standard deviation, and the ensemble."""
    names = list(document["spread"])
    table = Table()
    for name in ("seed", *(name.replace("_", " ") for name in names), "seconds"):
        table.add_column(name, justify="right")
    for row in document["seeds"]:
        table.add_row(str(row["seed"]), *(f"{row['metrics'][name]:.3f}" for name in names), f"{row['seconds']:.1f}")
    spread = [document["spread"][name] for name in names]
    table.add_row("mean", *(f"{found['mean']:.3f}" for found in spread), "", style="bold")
    table.add_row("sd", *(f"{found['sd']:.3f}" for found in spread), "")
    page.print(table)
    for name, value in document.items():
        if name.startswith("ensemble_") and value is not None:
            page.print(f"ensemble of all seeds: {name.removeprefix('ensemble_').replace('_', ' ')} {value:.3f}")
    print_next(document["folder"])


def _print_tried(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print all that `auto` tried, the best first."""
    table = Table(title="tried on held-out folds", title_justify="left")
    measure = next((key for row in rows for key in row if key not in _TRIED), "accuracy")
    for name in ("what", "loss", readable(measure, 0.0)[0], "sd", "folds", "rows", "seconds"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=name != "what")
    for row in rows:
        sd = "-" if row["sd"] is None else f"{row['sd']:.3f}"
        counts = (str(row["folds"]), str(row["rows"]), f"{row['seconds']:.1f}")
        score = readable(measure, row[measure])[1]
        table.add_row(Text(row["name"]), f"{row['loss']:.3f}", f"{score:.3f}", sd, *counts)
    page.print(table)


def _print_verdict(verdict: Mapping[str, Any]) -> None:
    """Print which prompt ships, and why."""
    page.print(f"the {verdict['ships']} prompt ships: {verdict['reason']}", markup=False, soft_wrap=True)
    if verdict["remark"]:
        page.print(verdict["remark"], markup=False, soft_wrap=True)


def print_words(document: Mapping[str, Any]) -> None:
    """Print what `words` found, ready to paste."""
    table = Table()
    for name in ("class", "word", "score", ""):
        table.add_column(name, justify="right" if name == "score" else "left")
    for row in document["table"]:
        score = "-" if row["score"] is None else f"{row['score']:+.2f}"
        note = ", ".join(word for word, is_so in (("current", row["is_current"]), ("found", row["is_chosen"])) if is_so)
        table.add_row(Text(row["label"]), Text(row["word"]), score, note)
    page.print(table)
    page.print(document["reason"], markup=False, soft_wrap=True)
    for argument in document["arguments"]:
        page.print(argument, markup=False, soft_wrap=True)


def print_family(document: Mapping[str, Any]) -> None:
    """Print what `multitask` found."""
    table = Table()
    measures = {name: _measure(metrics) for name, metrics in document["tasks"].items()}
    are_several = set(measures.values()) != {"accuracy"}
    for name in ("task", "train", "dev", "test", *(["score"] if are_several else [])):
        table.add_column(name, justify="left" if name in ("task", "score") else "right")
    for name, metrics in document["tasks"].items():
        found = [_first(metrics, f"{part}_") for part in ("train", "dev", "test")]
        cells = ["-" if value is None else f"{readable(called, value)[1]:.3f}" for called, value in found]
        table.add_row(name, *cells, *([readable(measures[name], 0.0)[0]] if are_several else []))
    page.print(table)
    page.print(f"family: {document['family']} ({document['seconds']:.1f} s)", markup=False)
    first = next(iter(document["tasks"]))
    print_next(f"{document['family']}/tasks/{first}")


def print_next(folder: str) -> None:
    """Print the command that asks an artifact, a run or a folder of seeds; rows of several columns stand in a file."""
    from cuecraft.artifact import load_artifact, member_folders
    from cuecraft.runs.made import artifact_of
    from cuecraft.task.answers import AnswerColumns

    made = artifact_of(Path(folder))
    task = load_artifact(next(iter(member_folders(made)), made)).task
    columns = [*task.template.field_names, *([AnswerColumns().options] if task.answers.asks_options else [])]
    given = '"some text"' if len(columns) == 1 else f"--file rows.jsonl (rows with {', '.join(columns)})"
    page.print(f"try it: cuecraft predict {shlex.quote(folder)} {given}", markup=False, soft_wrap=True)


def _measure(metrics: Mapping[str, Any]) -> str:
    """Return the name of a task's score: of its test rows, or of its training examples without any."""
    return _first(metrics, "test_")[0] or _first(metrics, "train_")[0] or "accuracy"


def _first(metrics: Mapping[str, Any], part: str) -> tuple[str, float | None]:
    """Return name, without `part`, and value of the first metric whose name begins with it; None for none."""
    return next(((name.removeprefix(part), own) for name, own in metrics.items() if name.startswith(part)), ("", None))


def print_mix(document: Mapping[str, Any]) -> None:
    """Print what `mix` made."""
    spec = document["weights"]
    page.print(f"artifact: {document['artifact']} (LoRA of rank {spec['rank']})", markup=False)


def print_exported(document: Mapping[str, Any]) -> None:
    """Print what was exported, and how a graph's answers compare."""
    line = f"{document['folder']} written"
    if "agreement" in document:
        found = document["agreement"]
        made = f"{document['format']} {document['precision']} ({document['recipe']})"
        line += (
            f": {made}, {document['bytes'] / 1e6:,.1f} MB; "
            f"{found['labels']:.1%} of the labels of {found['texts']} texts are PyTorch's, probabilities differ by "
            f"{found['max_difference']:.2g} at most"
        )
    page.print(line, markup=False, soft_wrap=True)


def print_artifact(artifact: Artifact, folder: str) -> None:
    """Print what an artifact holds."""
    manifest = artifact.manifest
    options = manifest.task.answers.options
    task, backbone, prompt = manifest.task, manifest.backbone, manifest.prompt
    table = Table(show_header=False, title=Text(folder), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    rows = {
        "method": f"{manifest.method}, seed {manifest.seed}",
        "backbone": f"{backbone.name} ({backbone.head}, {backbone.sha256[:12]})",
        "template": repr(task.template),
        "prompt": f"{prompt.kind}, {prompt.length} tokens: {prompt.described!r}",
        "words": repr(manifest.words) if manifest.words else "",
        "answers": "" if artifact.task.has_labels else _shown_answers(task.answers),
        "classes": _shown_words(options) if artifact.reads_words and options else _shown_classes(task.answers.classes),
        "calibration": _calibrations(manifest.calibrations),
        "metrics": ", ".join(f"{name} {value:.3f}" for name, value in shown_scores(manifest.metrics).items()),
        "data": ", ".join(f"{name} {d.rows} rows ({d.sha256[:8]})" for name, d in manifest.data.items()),
        "hash": manifest.artifact_sha256,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))
    page.print(table)


def _shown_answers(answers: AnswerSpace) -> str:
    """Return a kind of answers with its settings, and with what was fitted to held-out answers."""
    from cuecraft.task.answers import answers_document

    named = {name: value for name, value in answers_document(answers).items() if name not in _OPTIONS}
    shown = [f"{name} {_in_words(value)}" for name, value in named.items() if value not in (None, "", [])]
    return f"{answers.kind} ({', '.join(shown)})" if shown else answers.kind


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        more = ["..."] if len(value) > _SHOWN_BIASES else []
        return " ".join([*map(_in_words, value[:_SHOWN_BIASES]), *more])
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _calibrations(entries: Sequence[CalibrationEntry]) -> str:
    """Return the calibration of each prompt, or the one that all have."""
    lines = [f"scale {entry.scale:.3f}" + _biases(entry.bias) for entry in entries]
    return "; ".join(lines if len(set(lines)) > 1 else lines[:1])


def print_comparison(document: Comparison, tables: Sequence[TextTable], files: Sequence[Path]) -> None:
    """Print a comparison as a person reads it: its tables, who was refused, and where the files are."""
    seeds = ", ".join(str(entry.seed) for entry in document.seeds)
    page.print(
        f"{document.task.name}, {document.backbone.name}: seeds {seeds}; {document.test.rows} test rows", markup=False
    )
    for found in tables:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for number, name in enumerate(found.header):
            table.add_column(name, justify="right" if number else "left", no_wrap=not number)
        for row in found.rows:
            cells = list(row)
            is_best = cells[0] == document.best
            cells[0] += " *" * is_best + " °" * (cells[0] == document.untuned)
            table.add_row(*map(Text, cells), style="bold" if is_best else None)
        page.print(table, "")
    page.print("s, ms: seconds, milliseconds; MiB: peak memory; again: same steps in a second run (how many)")
    page.print(f"* least dev loss; the test set chooses nothing\n° what 'vs untuned' compares with: {document.untuned}")
    for refused in document.rows:
        if refused.refused:
            page.print(f"{refused.name} refused: {refused.refused}", markup=False, soft_wrap=True)
    for path in files:
        page.print(str(path), markup=False, soft_wrap=True)


def _biases(bias: Sequence[float]) -> str:
    """Return what is added to each option, the first ones of many."""
    if not any(bias):
        return ""
    return ", bias " + ", ".join(f"{own:+.3f}" for own in bias[:_SHOWN_BIASES]) + ", ..." * (len(bias) > _SHOWN_BIASES)
