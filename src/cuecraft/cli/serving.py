"""The command that serves prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuecraft import display
from cuecraft.cli.app import app
from cuecraft.cli.arguments import named_folders, pairs_of
from cuecraft.cli.options import BackboneNow, Backend, Device, Dtype, Offline
from cuecraft.guard.modes import GuardMode

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
    model: BackboneNow = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
) -> None:
    """Serve tuned prompts over HTTP: many of them, over one backbone."""
    from cuecraft.options import make_options
    from cuecraft.serve.command import ServeCommand, run_serve

    given = pairs_of(option or [])
    own = {
        "prompts": {name: folder.absolute() for name, folder in named_folders(artifacts or []).items()},
        "keep": keep and keep.absolute(),
        "tokens": tokens and tokens.absolute(),
        "rate": rate,
        "batches.cache_answers": cache,
        "guard.mode": guard.value,
        "log_texts": log_texts,
        "model": model,
        "device": device,
        "dtype": dtype,
        "local_files_only": local_files_only,
        "host": host,
        "port": port,
        "open": is_open,
        "cors_origins": tuple(cors_origin or ()),
        "backend": backend.value,
        "scale.replicas": replicas,
        "scale.drain": drain,
    }
    run_serve(make_options(ServeCommand, own | given), display.serving)
