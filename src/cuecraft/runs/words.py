"""What `words` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cuecraft.backbone import load_backbone
from cuecraft.events import Event
from cuecraft.options import make_options
from cuecraft.runs.examples import check_labels, train_and_dev
from cuecraft.runs.requests import WordsRequest
from cuecraft.search.label_words import LabelWordSearch
from cuecraft.task.verbalizer import default_word
from cuecraft.tune.prepare import make_problem, make_task


def run_words(request: WordsRequest, report: Callable[[Event], None]) -> dict[str, Any]:
    """Search label words; return the document of `cuecraft words --json`.

    Raises:
        CuecraftError: anything that the user can fix.
    """
    begun = time.perf_counter()
    search = make_options(LabelWordSearch, request.options)
    train, dev, _ = train_and_dev(request)
    check_labels(request.train, train, {request.dev or f"dev rows of {request.train}": dev or []})
    backbone = load_backbone(request.model, request.head, **request.where)
    labels = sorted({record.label for record in train if record.label is not None})
    current = request.label_words or {label: (default_word(label),) for label in labels}
    task = make_task(backbone, train, request.template, current, chat=request.chat)
    found = search.search(make_problem(backbone, task, train, dev, seed=request.seed, report=report))
    return {
        "model": backbone.name,
        "template": task.template.source,
        **found.document(),
        "seconds": round(time.perf_counter() - begun, 2),
    }
