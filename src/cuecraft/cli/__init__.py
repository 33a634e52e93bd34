"""The command line: Typer commands; what they do lives elsewhere."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from cuecraft.cli import display, running, serving, streams, tuning, using
from cuecraft.cli import running as comparing
from cuecraft.cli import serving as classifying
from cuecraft.cli import serving as guarding
from cuecraft.cli.app import app
from cuecraft.cli.options import flag_of
from cuecraft.core.errors import CuecraftError, CuecraftWarning

__all__ = ["app", "classifying", "comparing", "guarding", "main", "running", "serving", "tuning", "using"]


def main() -> None:
    """Run the command line; exit code 2 for a mistake of the user, 1 for anything else that fails."""
    warnings.simplefilter("always", CuecraftWarning)
    show_others = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if isinstance(message, CuecraftWarning):
            display.warn(message.worded(flag_of))
        else:
            show_others(message, category, *rest, **more)

    warnings.showwarning = show_warning
    streams.open_streams()
    code: str | int | None = 0
    try:
        app()
    except SystemExit as stopped:
        code = stopped.code
    except BrokenPipeError:
        code = 1
    except (CuecraftError, OSError, UnicodeError) as error:
        display.fail(error.worded(flag_of) if isinstance(error, CuecraftError) else streams.shown(error))
        code = 2
    sys.exit(streams.end(code))
