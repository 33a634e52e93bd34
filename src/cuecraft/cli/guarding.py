"""Commands of the guard: check, eval, data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuecraft import display
from cuecraft.cli.app import CommandApp, app
from cuecraft.cli.arguments import lines_of
from cuecraft.cli.help import COMMANDS
from cuecraft.cli.options import Device, Dtype, Json, LabelColumn, Offline

if TYPE_CHECKING:
    from cuecraft.runs.guarding import GuardRequest

guard_app = CommandApp("guard", no_args_is_help=True, help="Screen texts for prompt injection: check, eval, data.")
app.add_typer(guard_app, name="guard", rich_help_panel=COMMANDS["guard"].panel)

RuleFiles = Annotated[list[Path] | None, typer.Option(help="YAML file of further rules; may be repeated.")]
Detectors = Annotated[
    list[str] | None,
    typer.Option("--detector", help="Hub name or folder of a text classifier, asked too; may be repeated."),
]
ArtifactFolder = Annotated[
    Path | None, typer.Option(help="Artifact or run whose tuned prompt is asked too, such as of recipe guard-detector.")
]
AttackClasses = Annotated[
    list[str] | None,
    typer.Option("--attack-class", help="Class of the detectors that means an attack; by default found by its name."),
]
Threshold = Annotated[
    float, typer.Option(min=0, max=1, help="Probability of an attack from which on a detector flags.")
]
BackboneName = Annotated[str | None, typer.Option(help="Where the artifact's backbone is now, if not where it was.")]


@guard_app.command("check")
def check_texts(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; by default lines of stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet file, or .txt with a text a line.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of text in --file.")] = "text",
    rules: RuleFiles = None,
    detector: Detectors = None,
    artifact: ArtifactFolder = None,
    attack_class: AttackClasses = None,
    threshold: Threshold = 0.5,
    model: BackboneName = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Screen texts; exit code 0 where all pass, 1 where one is flagged."""
    from cuecraft.runs.guarding import guard_texts, make_guard, run_guard_check

    found = guard_texts(lines_of(texts, file), file, text_column)
    backbone = {"model": model, "device": device, "dtype": dtype, "local_files_only": local_files_only}
    request = _request(rules, detector, artifact, attack_class, threshold, backbone)
    document = run_guard_check(make_guard(request), found)
    display.print_json(document) if json else display.print_screenings(document)
    if document["flagged"]:
        raise typer.Exit(1)


@guard_app.command("eval")
def evaluate(
    file: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet file of labelled texts.")],
    text_column: Annotated[str, typer.Option(help="Column of text.")] = "text",
    label_column: LabelColumn = "label",
    attack_label: Annotated[
        list[str] | None,
        typer.Option(help="Label of FILE that means an attack; by default found by its name; may be repeated."),
    ] = None,
    rules: RuleFiles = None,
    detector: Detectors = None,
    artifact: ArtifactFolder = None,
    attack_class: AttackClasses = None,
    threshold: Threshold = 0.5,
    model: BackboneName = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Measure rules and detectors on labelled texts: precision, recall, false positives."""
    from cuecraft.runs.guarding import run_guard_eval

    backbone = {"model": model, "device": device, "dtype": dtype, "local_files_only": local_files_only}
    request = _request(rules, detector, artifact, attack_class, threshold, backbone)
    document = run_guard_eval(request, file, text_column, label_column, attack_label or [])
    display.print_json(document) if json else display.print_guard_rates(document)


@guard_app.command("data")
def write_data(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("guard-data"), json: Json = False
) -> None:
    """Write labelled texts to tune a detector on: ours, and bastioncorpus where it is installed."""
    from cuecraft.runs.guarding import write_guard_data

    document = write_guard_data(out)
    display.print_json(document) if json else display.print_guard_data(document)


def _request(
    rules: list[Path] | None,
    detectors: list[str] | None,
    folder: Path | None,
    attack: list[str] | None,
    threshold: float,
    backbone: dict[str, Any],
) -> GuardRequest:
    """Return what a guard is made of; the folder of an artifact may be that of a run."""
    from cuecraft.recipe.made import artifact_of
    from cuecraft.runs.guarding import GuardRequest

    artifact = folder and artifact_of(folder)
    return GuardRequest(rules or [], detectors or [], artifact, attack or [], threshold, backbone)
