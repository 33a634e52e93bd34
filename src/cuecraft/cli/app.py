"""The command line application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Automated prompt tuning for frozen language models.",
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"cuecraft {version('cuecraft')}")
        raise typer.Exit


@app.callback()
def _root(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Automated prompt tuning for frozen language models."""
