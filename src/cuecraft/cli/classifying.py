"""The command that classifies files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft import display
from cuecraft.bulk.choices import Dedupe
from cuecraft.cli.app import app
from cuecraft.cli.arguments import made_folder, name_and_folder, named_folders, pairs_of, share_of, unescaped
from cuecraft.cli.options import BackboneNow, Backend, Delimiter, Device, Dtype, Json, Offline
from cuecraft.data.formats import Format
from cuecraft.errors import BulkError, StoppedError

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
    model: BackboneNow = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
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
        "model": model,
        "device": device,
        "dtype": dtype,
        "local_files_only": local_files_only,
    }
    document = _classified(own | pairs_of(option or []))
    display.print_json(document) if json else display.print_classified(document)


def _classified(settings: dict[str, Any]) -> dict[str, Any]:
    """Do the job and return its document; end with the exit code of a signal where one stopped it."""
    from cuecraft.bulk.command import run_classify
    from cuecraft.bulk.job import ClassifyCommand
    from cuecraft.options import make_options

    try:
        with display.bulk_progress() as told:
            return run_classify(make_options(ClassifyCommand, settings), told, display.stopping)
    except StoppedError as stopped:
        display.resumable()
        raise typer.Exit(128 + int(stopped.args[0])) from None


def _told_apart(arguments: list[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the prompts by id, and the inputs.

    Raises:
        BulkError: there is no prompt among the arguments.
    """
    from cuecraft.runtime import is_export

    def is_prompt(argument: str) -> bool:
        _, named = name_and_folder(argument)
        try:
            is_folder = named.is_dir()
        except OSError:  # too long for a name, so maybe a text
            return False
        # Without PyTorch, which exported folders do not need, there can be no other prompts.
        if not is_folder or is_export(named) or find_spec("torch") is None:
            return is_folder and is_export(named)
        from cuecraft.manifests import MANIFEST
        from cuecraft.prompts import member_folders

        path = made_folder(named)
        return (path / MANIFEST).is_file() or bool(member_folders(path))

    prompts = [argument for argument in arguments if is_prompt(argument)]
    if not prompts:
        raise BulkError("no argument is the folder of an artifact or a run; name the prompt first, then the input")
    inputs = [argument for argument in arguments if argument not in prompts]
    return {name: folder.absolute() for name, folder in named_folders(prompts).items()}, inputs
