"""What `tune` does: with labels, without, or with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuecraft.events import Event
from cuecraft.runs.requests import TuneRequest
from cuecraft.runs.seeds import run_seeds
from cuecraft.runs.tuning import tune_once
from cuecraft.runs.unlabeled import run_label_free


def run_tune(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Do what was asked for; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    if request.unlabeled:
        document = run_label_free(request, started)
    else:
        document = tune_once(request, started) if request.seeds is None else run_seeds(request, started)
    return document | request.reading.document()
