"""What the command `advise` does: data and a model in, a JSON-ready document out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cuecraft.advise.document import Scores, make_document
from cuecraft.advise.endpoint import Endpoint, ask_all, key_from
from cuecraft.advise.forms import measure_forms
from cuecraft.advise.lengths import measure_lengths
from cuecraft.advise.measure import Reading, accuracy, calibrated_accuracy, stratified_order
from cuecraft.advise.request import AdviseRequest
from cuecraft.advise.survey import survey
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.data import Record, read_partly_labelled
from cuecraft.errors import DataError, EndpointError, LabelWordError
from cuecraft.events import Event
from cuecraft.task import Task
from cuecraft.tune.prepare import label_free_task

ENDPOINT_ROWS = 100  # texts that are sent at most: an accuracy is then known to about ten points either way


def run_advise(request: AdviseRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Look at data, measure for about the time limit, and return the document of `cuecraft advise --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    endpoint = _endpoint(request)
    if request.labelled_out is not None:
        _check_target(request.labelled_out)
    records = read_partly_labelled(request.data, request.text_columns, request.label_column or "label", request.reading)
    if request.label_column is not None and all(record.label is None for record in records):
        raise DataError(f"{request.data}: no row has a label in column {request.label_column!r}; check its name")
    found = survey(records, request.classes)
    labelled = [record for record in records if record.label is not None]
    if endpoint and not labelled:
        raise EndpointError("an endpoint is a reference for accuracy, and no row has a label; leave --endpoint out")
    started("loading the model")
    backbone = load_backbone(
        request.model, request.head, request.device, local_files_only=request.local_files_only, dtype=request.dtype
    )
    words, limit = request.label_words, request.max_tokens
    task = label_free_task(backbone, records, list(found.classes), request.template, words, limit, chat=request.chat)
    tokens = _label_tokens(backbone, task) if labelled else _token_counts(backbone, task)
    reading, forms = None, None
    if tokens is not None:
        measured = measure_forms(request, backbone, task, labelled or records, started)
        task, reading, forms = measured.task, measured.reading, measured.forms
        if measured.is_chat:
            request, tokens = replace(request, chat=True), _token_counts(backbone, task)
    lengths = measure_lengths(backbone, task, records, request.seed)
    scores = _scores(request, task, labelled, reading, endpoint, started)
    scores = replace(scores, forms=forms)
    document = make_document(request, backbone, task, found, lengths, tokens, reading, scores)
    if request.labelled_out is not None:
        _write(request.labelled_out, labelled, request.label_column or "label")
    return document


def _endpoint(request: AdviseRequest) -> Endpoint | None:
    if request.endpoint is None:
        if request.endpoint_model or request.endpoint_key_env:
            raise EndpointError("--endpoint-model and --endpoint-key-env need --endpoint with an address")
        return None
    if not request.endpoint_model:
        raise EndpointError("--endpoint needs --endpoint-model, the name that the server knows the model by")
    return Endpoint(request.endpoint, request.endpoint_model, key_from(request.endpoint_key_env, request.endpoint))


def _label_tokens(backbone: AnyBackbone, task: Task) -> dict[str, list[int]] | None:
    """Return how many tokens each class's words have; None where they cannot be scored and labels can find others."""
    try:
        return _token_counts(backbone, task)
    except LabelWordError:
        return None


def _token_counts(backbone: AnyBackbone, task: Task) -> dict[str, list[int]]:
    ids = backbone.renderer(task).label_ids
    return {label: [len(word) for word in words] for label, words in zip(task.verbalizer.labels, ids, strict=False)}


def _scores(
    request: AdviseRequest,
    task: Task,
    labelled: Sequence[Record],
    reading: Reading | None,
    endpoint: Endpoint | None,
    started: Callable[[str], Callable[[Event], None]],
) -> Scores:
    """Score what was read, and ask the endpoint where one is named."""
    truth = [task.verbalizer.index(str(record.label)) for record in labelled]
    found = Scores()
    if reading is not None and reading.logits is not None and labelled:
        labels = torch.tensor([truth[row] for row in reading.rows])
        calibrated = calibrated_accuracy(reading.logits, labels, request.seed)
        found = Scores(accuracy(reading.logits, labels), calibrated)
    if endpoint is not None:
        rows = stratified_order([record.label for record in labelled], request.seed)[:ENDPOINT_ROWS]
        report = started(f"sending {len(rows)} texts to {endpoint.address}")
        texts, answers = [labelled[row].fields for row in rows], [truth[row] for row in rows]
        found = replace(found, endpoint=ask_all(endpoint, texts, task.verbalizer.labels, answers, report))
    return found


def _check_target(path: Path) -> None:
    """Raise DataError, before anything long is done, where the labelled rows cannot be written to a file."""
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: the labelled rows are written as JSONL; name the file *.jsonl")
    if path.exists():
        raise DataError(f"{path} is there already; name another file, or remove it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder; make it, or name another file")


def _write(path: Path, labelled: Sequence[Record], label_column: str) -> None:
    """Write the labelled rows as JSONL: the whole file or nothing."""
    lines = [json.dumps({**record.fields, label_column: record.label}, ensure_ascii=False) for record in labelled]
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
