"""Commands that answer texts: serve, classify, and those of the guard (check, eval, data)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuecraft.cli import display
from cuecraft.cli.app import CommandApp, app
from cuecraft.cli.from_spec import Fields
from cuecraft.cli.help import COMMANDS
from cuecraft.cli.options import (
    Backend,
    Json,
    lines_of,
    named_folders,
    pairs_of,
)
from cuecraft.serving.guard.modes import GuardMode
from cuecraft.task.sections import BackboneSection, FamilyData

if TYPE_CHECKING:
    from cuecraft.runs.guard import GuardRequest


from importlib.util import find_spec

from cuecraft.cli.options import Delimiter, made_folder, name_and_folder, share_of, unescaped
from cuecraft.core.errors import BulkError, StoppedError
from cuecraft.data.files import Format
from cuecraft.serving.bulk.choices import Dedupe

Served = Annotated[
    list[str] | None, typer.Argument(help="Folders of artifacts, runs or exports; NAME=FOLDER for an id.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File of access tokens: 'client NAME TOKEN' or 'admin NAME TOKEN' a line.")
]
KeepFolder = Annotated[Path | None, typer.Option(help="Folder for uploaded prompts, served again after a restart.")]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(help="Let web pages of this origin ask from a browser, https://app.example.com, or *; repeat it."),
]
ServeOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE, such as batches.max_wait_ms=5; may be repeated. See docs/serving.md."),
]


@app.command()
def serve(
    backbone: BackboneSection,
    artifacts: Served = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
    backend: Annotated[Backend, typer.Option(help="This process, or replicas on Ray (RAY_ADDRESS).")] = Backend.LOCAL,
    replicas: Annotated[int, typer.Option(min=1, help="With --backend ray: replicas at least.")] = 1,
    tokens: TokenFile = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Accept requests from other machines without tokens.")
    ] = False,
    cors_origin: CorsOrigins = None,
    keep: KeepFolder = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Answers a second for each token.")] = None,
    cache: Annotated[int, typer.Option(min=0, help="Answers kept for texts that come again.")] = 0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for what is in progress at the end.")] = 20.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write the texts into the log, too.")] = False,
    guard: Annotated[GuardMode, typer.Option(help="What is done with texts that look like attacks.")] = GuardMode.OFF,
    option: ServeOption = None,
) -> None:
    """Serve tuned prompts over HTTP: many of them, over one backbone."""
    from cuecraft.core.options import make_options
    from cuecraft.serving.command import ServeCommand, run_serve

    given = pairs_of(option or [])
    own = {
        "prompts": {name: folder.absolute() for name, folder in named_folders(artifacts or []).items()},
        "keep": keep and keep.absolute(),
        "tokens": tokens and tokens.absolute(),
        "rate": rate,
        "batches.cache_answers": cache,
        "guard.mode": guard.value,
        "log_texts": log_texts,
        **backbone.model_dump(),
        "host": host,
        "port": port,
        "open": is_open,
        "cors_origins": tuple(cors_origin or ()),
        "backend": backend.value,
        "scale.replicas": replicas,
        "scale.drain": drain,
    }
    run_serve(make_options(ServeCommand, own | given), display.serving)


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


@guard_app.command("check")
def check_texts(
    backbone: BackboneSection,
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
    json: Json = False,
) -> None:
    """Screen texts; exit code 0 where all pass, 1 where one is flagged."""
    from cuecraft.runs.guard import guard_texts, make_guard, run_guard_check

    found = guard_texts(lines_of(texts, file), file, text_column)
    request = _request(rules, detector, artifact, attack_class, threshold, backbone.model_dump())
    document = run_guard_check(make_guard(request), found)
    display.print_json(document) if json else display.print_screenings(document)
    if document["flagged"]:
        raise typer.Exit(1)


@guard_app.command("eval")
def evaluate(
    file: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet file of labelled texts.")],
    columns: Annotated[FamilyData, Fields(("label_column",))],
    backbone: BackboneSection,
    text_column: Annotated[str, typer.Option(help="Column of text.")] = "text",
    attack_label: Annotated[
        list[str] | None,
        typer.Option(help="Label of FILE that means an attack; by default found by its name; may be repeated."),
    ] = None,
    rules: RuleFiles = None,
    detector: Detectors = None,
    artifact: ArtifactFolder = None,
    attack_class: AttackClasses = None,
    threshold: Threshold = 0.5,
    json: Json = False,
) -> None:
    """Measure rules and detectors on labelled texts: precision, recall, false positives."""
    from cuecraft.runs.guard import run_guard_eval

    request = _request(rules, detector, artifact, attack_class, threshold, backbone.model_dump())
    document = run_guard_eval(request, file, text_column, columns.label_column or "label", attack_label or [])
    display.print_json(document) if json else display.print_guard_rates(document)


@guard_app.command("data")
def write_data(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("guard-data"), json: Json = False
) -> None:
    """Write labelled texts to tune a detector on: ours, and bastioncorpus where it is installed."""
    from cuecraft.runs.guard import write_guard_data

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
    from cuecraft.runs.guard import GuardRequest
    from cuecraft.runs.made import artifact_of

    artifact = folder and artifact_of(folder)
    return GuardRequest(rules or [], detectors or [], artifact, attack or [], threshold, backbone)


Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="ARTIFACT... INPUT...",
        help="Folders of artifacts, runs or exports (NAME=FOLDER for an id) are the prompts, wherever they stand; all "
        "else is input: files (.jsonl, .csv, .tsv, .parquet, .txt, .log, each also .gz or .zst), folders of such, "
        "globs, or -.",
    ),
]
BulkOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE, such as block_mb=64; may be repeated. See docs/bulk.md."),
]


@app.command()
def classify(
    arguments: Arguments,
    out: Annotated[Path, typer.Option(help="Folder of the job: answers, quarantine/, state.")],
    backbone: BackboneSection,
    field: Annotated[
        list[str] | None, typer.Option(help="Field that is classified; repeat it for a prompt of several fields.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="A text made of several fields: '{level} {message}'.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Field that is written next to the answer; repeat it.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Of the input; by default by its ending.")] = None,
    delimiter: Delimiter = None,
    output: Annotated[str, typer.Option(help="Of the answers: jsonl or parquet.")] = "jsonl",
    dedupe: Annotated[
        Dedupe, typer.Option(help="Answer once: the same text, the same but for numbers, ids, paths and times, or off.")
    ] = Dedupe.EXACT,
    cascade: Annotated[bool, typer.Option("--cascade", help="Let a small student answer what it is sure of.")] = False,
    agreement: Annotated[float, typer.Option(help="With --cascade: of its answers with the backbone's.")] = 0.99,
    max_bad: Annotated[str | None, typer.Option(help="Stop where more rows than this are bad: 1% or 0.01.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a job that was interrupted.")] = False,
    backend: Annotated[Backend, typer.Option(help="This machine, or actors on Ray (RAY_ADDRESS).")] = Backend.LOCAL,
    replicas: Annotated[int, typer.Option(min=1, help="With --backend ray: actors, each with the backbone.")] = 1,
    option: BulkOption = None,
    json: Json = False,
) -> None:
    """Classify files of any size, a label for each row; broken rows are put aside, --resume continues a stopped job."""
    prompts, inputs = _told_apart(arguments)
    own = {
        "prompts": prompts,
        "inputs": tuple(inputs),
        "out": out,
        "fields": tuple(field or ()),
        "template": unescaped(template),
        "keep": tuple(keep or ()),
        "format": format_,
        "delimiter": delimiter,
        "output": output,
        "dedupe": dedupe,
        "cascade": cascade,
        "agreement": agreement,
        "max_bad": share_of(max_bad),
        "resume": resume,
        "backend": backend.value,
        "actors.replicas": replicas,
        **backbone.model_dump(),
    }
    document = _classified(own | pairs_of(option or []))
    display.print_json(document) if json else display.print_classified(document)


def _classified(settings: dict[str, Any]) -> dict[str, Any]:
    """Do the job and return its document; end with the exit code of a signal where one stopped it."""
    from cuecraft.core.options import make_options
    from cuecraft.serving.bulk.cluster import run_classify
    from cuecraft.serving.bulk.job import ClassifyCommand

    try:
        with display.bulk_progress() as report:
            return run_classify(make_options(ClassifyCommand, settings), report, display.stopping)
    except StoppedError as stopped:
        display.resumable()
        raise typer.Exit(128 + int(stopped.args[0])) from None


def _told_apart(arguments: list[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the prompts by id, and the inputs.

    Raises:
        BulkError: there is no prompt among the arguments.
    """
    from cuecraft.export.runtime import is_export

    def is_prompt(argument: str) -> bool:
        _, named = name_and_folder(argument)
        try:
            is_folder = named.is_dir()
        except OSError:  # too long for a name, so maybe a text
            return False
        # Without PyTorch, which exported folders do not need, there can be no other prompts.
        if not is_folder or is_export(named) or find_spec("torch") is None:
            return is_folder and is_export(named)
        from cuecraft.artifact import member_folders
        from cuecraft.core.storage import MANIFEST

        path = made_folder(named)
        return (path / MANIFEST).is_file() or bool(member_folders(path))

    prompts = [argument for argument in arguments if is_prompt(argument)]
    if not prompts:
        raise BulkError("no argument is the folder of an artifact or a run; name the prompt first, then the input")
    inputs = [argument for argument in arguments if argument not in prompts]
    return {name: folder.absolute() for name, folder in named_folders(prompts).items()}, inputs
