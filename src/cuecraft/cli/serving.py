"""The command that serves prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuecraft import display
from cuecraft.cli.app import app
from cuecraft.cli.options import Device, Dtype, Offline
from cuecraft.errors import ServeError

Served = Annotated[list[str] | None, typer.Argument(help="Folders of artifacts or runs; NAME=FOLDER for an id.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File of access tokens: 'client NAME TOKEN' or 'admin NAME TOKEN' a line.")
]
KeepFolder = Annotated[Path | None, typer.Option(help="Folder for uploaded prompts, served again after a restart.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of a batch; by default by the device.")]


@app.command()
def serve(
    artifacts: Served = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
    tokens: TokenFile = None,
    is_open: Annotated[bool, typer.Option("--open", help="Serve others than this machine without tokens.")] = False,
    keep: KeepFolder = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Answers a second for each token.")] = None,
    batch_tokens: BatchTokens = None,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a text waits for others to share a batch.")] = 2.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Answers that may be waited for; more are refused.")] = 4096,
    cache: Annotated[int, typer.Option(min=0, help="Answers kept for texts that come again.")] = 0,
    max_inputs: Annotated[int, typer.Option(min=1, help="Texts of one request.")] = 256,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of one text.")] = 20_000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1_000_000,
    max_upload_bytes: Annotated[int, typer.Option(min=1, help="Bytes of an uploaded prompt.")] = 64_000_000,
    timeout_ms: Annotated[int, typer.Option(min=1, help="How long a request may take.")] = 30_000,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for what is under way at the end.")] = 20.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write the texts into the log, too.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the backbone is now, if not where it was.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
) -> None:
    """Serve tuned prompts over HTTP: many of them, over one backbone."""
    from cuecraft.recipe import artifact_of
    from cuecraft.runs.serving import ServeRequest, run_serve

    request = ServeRequest(
        prompts={name: artifact_of(folder) for name, folder in _named(artifacts or []).items()},
        address=(host, port),
        tokens=tokens,
        is_open=is_open,
        keep=keep,
        rate=rate,
        batches={
            "batch_tokens": batch_tokens,
            "max_wait_ms": max_wait_ms,
            "max_queue": max_queue,
            "cache_answers": cache,
        },
        limits={
            "body_bytes": max_body_bytes,
            "upload_bytes": max_upload_bytes,
            "inputs": max_inputs,
            "characters": max_characters,
            "timeout_ms": timeout_ms,
        },
        drain=drain,
        logs_texts=log_texts,
        backbone={"model": model, "device": device, "dtype": dtype, "local_files_only": local_files_only},
    )
    run_serve(request, display.serving)


def _named(arguments: list[str]) -> dict[str, Path]:
    """Return the folder of each id; a folder without an id has its own name."""
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        path = Path(folder if equals else argument)
        name = name if equals else path.resolve().name
        if name in found:
            raise ServeError(f"two prompts would have the id {name!r}; give each one of its own, NAME=FOLDER")
        found[name] = path
    return found
