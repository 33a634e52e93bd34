"""The command line application."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft.cli.from_spec import expanded
from cuecraft.cli.help import COMMANDS, HelpfulCommand, OrderedGroup, epilog
from cuecraft.data.files import check_is_path


class CommandApp(typer.Typer):
    """Commands whose files and folders are paths: an address of the web or of a cloud's storage is refused.

    Args:
        prefix: what stands before the names of the commands, for a group of them.
        options: as Typer takes them.
    """

    def __init__(self, prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._prefix = prefix

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a command, with its group and examples in help; it raises DataError where a path is an address."""

        def decorated(plain: Callable[..., None]) -> Callable[..., None]:
            function = expanded(plain)
            own = name or plain.__name__
            whole = f"{self._prefix} {own}".strip()
            shown = {"cls": HelpfulCommand, "epilog": epilog(whole)}
            if not self._prefix and whole in COMMANDS:
                shown["rich_help_panel"] = COMMANDS[whole].panel
            added = super(CommandApp, self).command(name, **shown | options)

            @wraps(function)
            def checked(**values: Any) -> None:
                for value in values.values():
                    for path in value if isinstance(value, list) else [value]:
                        if isinstance(path, Path):
                            check_is_path(str(path))
                function(**values)

            added(checked)
            return plain

        return decorated


app = CommandApp(
    cls=OrderedGroup,
    no_args_is_help=True,
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
