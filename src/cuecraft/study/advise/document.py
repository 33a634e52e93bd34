"""What the command `advise` does: data and a model in, all that was found as one JSON-ready document out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.errors import DataError, EndpointError, LabelWordError, MethodError, named
from cuecraft.core.events import Event
from cuecraft.data import Record, read_partly_labelled
from cuecraft.data.files import Format, kind_of
from cuecraft.methods.prepare import label_free_task
from cuecraft.study.advise.endpoint import Endpoint, Reference, ask_all, key_from
from cuecraft.study.advise.forms import measure_forms
from cuecraft.study.advise.measure import (
    Accuracy,
    Measurement,
    Sizes,
    accuracy,
    answer_shares,
    calibrated_accuracy,
    expected,
    stratified_order,
)
from cuecraft.study.advise.rules import (
    AdviseRequest,
    Facts,
    Fit,
    beginning_words,
    command_line,
    findings,
    fitting,
    next_command,
    worth,
)
from cuecraft.study.advise.survey import Lengths, Survey, measure_lengths, survey
from cuecraft.task import Task
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.answers.asked import Asked

_SHOWN = 5  # contradictions that are listed
_SCARCE = 4  # labels of a class that has few compared with others
ENDPOINT_ROWS = 100  # texts that are sent at most: an accuracy is then known to about ten points either way


@dataclass(frozen=True)
class MeasuredScores:
    """What was measured on labelled texts; None where it could not be."""

    zero_shot: Accuracy | None = None
    calibrated: Accuracy | None = None
    endpoint: Reference | None = None
    forms: Mapping[str, Any] | None = None  # how plain and chat template compare


def make_document(
    request: AdviseRequest,
    backbone: AnyBackbone,
    task: Task,
    found: Survey,
    lengths: Lengths,
    tokens: Mapping[str, list[int]] | None,
    reading: Measurement | None,
    scores: MeasuredScores,
) -> dict[str, Any]:
    """Return the document of `cuecraft advise --json`.

    Args:
        request: what was asked for.
        backbone: the frozen model.
        task: the task.
        found: what the rows show.
        lengths: of the texts.
        tokens: how many each of a class's words has; None where they cannot be scored.
        reading: the measurement; None where there was none.
        scores: on labelled texts.
    """
    best = max(filter(None, (scores.zero_shot, scores.calibrated)), key=lambda one: one.value, default=None)
    verdict, why = worth(best.interval if best else None, found.majority or 0.0, found.ceiling)
    fits = fitting(found.labels_per_class, backbone.head_kind)
    sizes = None
    if reading is not None:
        learned_from = found.labelled or found.rows
        sizes = Sizes.of(backbone, task, lengths, reading.tokens_per_second, learned_from, found.rows)
    beginnings = None if tokens is not None else beginning_words(backbone.tokenizer, task.verbalizer.labels)
    answers = None
    if reading is not None and reading.logits is not None:
        answers = dict(zip(task.verbalizer.labels, answer_shares(reading.logits), strict=True))
    return {
        "data": _data(request, found),
        "model": {"name": backbone.name, "head": str(backbone.head_kind), "dtype": backbone.dtype_name},
        "lengths": _lengths(lengths),
        "label_words": {
            label: {"words": list(words), "tokens": tokens and tokens.get(label)}
            for label, words in zip(task.verbalizer.labels, task.verbalizer.words, strict=True)
        }
        if backbone.has_words
        else None,
        "measurement": reading
        and {
            "rows": len(reading.rows),
            "seconds": round(reading.seconds, 1),
            "tokens_per_second": round(reading.tokens_per_second, 1),
        },
        "zero_shot": _shown(scores.zero_shot),
        "calibrated": _shown(scores.calibrated),
        "forms": scores.forms,
        "majority_accuracy": found.majority,
        "answers": answers,
        "endpoint": scores.endpoint and _reference(request, scores.endpoint),
        "methods": [_method(request, fit, sizes) for fit in fits],
        "tuning": {"worth": str(verdict), "why": why},
        "findings": findings(facts_of(backbone, task, found, lengths, tokens, scores)),
        "next": next_command(request, found, fits, verdict, beginnings),
    }


def _data(request: AdviseRequest, found: Survey) -> dict[str, Any]:
    return {
        "source": request.data,
        "rows": found.rows,
        "labelled": found.labelled,
        "unlabelled": found.unlabelled,
        "classes": dict(found.classes),
        "labels_per_class": round(found.labels_per_class, 1),
        "duplicates": found.duplicates,
        "contradictory_texts": len(found.contradictions),
        "contradictions": [
            {"rows": list(one.rows), "labels": dict(one.labels)} for one in found.contradictions[:_SHOWN]
        ],
        "highest_possible_accuracy": found.ceiling if found.labelled else None,
    }


def _lengths(lengths: Lengths) -> dict[str, Any]:
    return {
        "rows": lengths.rows,
        "median": lengths.median,
        "p95": lengths.p95,
        "max": lengths.longest,
        "template": lengths.fixed,
        "limit": lengths.limit,
        "room": lengths.capacity,
        "cut": lengths.cut,
        "cut_share": lengths.cut_share,
    }


def _shown(found: Accuracy | None) -> dict[str, Any] | None:
    return None if found is None else {"accuracy": found.value, "interval_95": list(found.interval), "rows": found.rows}


def _reference(request: AdviseRequest, found: Reference) -> dict[str, Any]:
    return {
        "address": request.endpoint,
        "model": request.endpoint_model,
        **(_shown(found.accuracy) or {}),
        "no_class": found.unclear,
        "seconds": round(found.seconds, 1),
        "tokens": found.tokens,
    }


def _method(request: AdviseRequest, fit: Fit, sizes: Sizes | None) -> dict[str, Any]:
    cost = sizes and expected(fit.work, sizes, fit.epochs, fit.time_limit)
    return {
        "name": fit.name,
        "why": fit.why,
        "about_seconds": cost and round(max(0.1, cost.seconds), 1),
        "about_bytes": cost and cost.bytes,
        "command": command_line(request, fit.command),
    }


def facts_of(
    backbone: AnyBackbone,
    task: Task,
    found: Survey,
    lengths: Lengths,
    tokens: Mapping[str, list[int]] | None,
    scores: MeasuredScores,
) -> Facts:
    """Return the figures that the rules look at; arguments as in `make_document`."""
    counts = [count for count in found.classes.values() if count]
    words = task.verbalizer.labels if backbone.has_words else ()
    own, calibrated, endpoint = scores.zero_shot, scores.calibrated, scores.endpoint
    here, majority = calibrated or own, found.majority
    return Facts(
        cut_share=lengths.cut_share,
        capacity=lengths.capacity,
        duplicate_share=found.duplicates / found.rows,
        contradictions=len(found.contradictions),
        imbalance=max(counts) / min(counts) if counts else None,
        missing_classes=len(found.classes) - len(counts) if counts else None,
        scarce_classes=sum(count < _SCARCE for count in counts) if counts and max(counts) >= _SCARCE else None,
        partly_unlabelled=found.unlabelled if found.labelled else None,
        long_words=sum(min(lengths) > 1 for lengths in tokens.values()) if tokens else None,
        unusable_words=int(tokens is None),
        numbered_classes=int(bool(words) and all(word.isdigit() for row in task.verbalizer.words for word in row)),
        below_majority=majority - own.interval[1] if own and majority is not None else None,
        calibration_gain=min(calibrated.value - own.interval[1], calibrated.interval[0] - majority)
        if own and calibrated and majority is not None
        else None,
        endpoint_lead=endpoint.accuracy.interval[0] - here.interval[1] if endpoint and here else None,
    )


def _check_is_labels(request: AdviseRequest) -> None:
    """Raise MethodError where the rows have answers of another kind than labels."""
    if kind_of(Path(request.data))[0] is Format.TEXT:
        return
    asked = Asked.in_file(request.data, None, AnswerColumns(request.label_column), request.reading)
    if asked.kind != "labels":
        raise MethodError(
            f"{request.data}: advise measures one label for each text, and these answers are of kind {asked.kind} "
            f"({asked.inferred}); use compare, or tune with the method auto"
        )


def run_advise(request: AdviseRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Look at data, measure for about the time limit, and return the document of `cuecraft advise --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    endpoint = _endpoint(request)
    if request.labelled_out is not None:
        _check_target(request.labelled_out)
    _check_is_labels(request)
    records = read_partly_labelled(request.data, request.text_columns, request.label_column or "label", request.reading)
    if request.label_column is not None and all(record.label is None for record in records):
        raise DataError(f"{request.data}: no row has a label in column {request.label_column!r}; check its name")
    found = survey(records, request.classes)
    labelled = [record for record in records if record.label is not None]
    if endpoint and not labelled:
        raise EndpointError(
            f"an endpoint is a reference for accuracy, and no row has a label; leave {named('endpoint')} out"
        )
    started("loading the model")
    backbone, asked = load_backbone(request.model.name, request.model.head, **request.model.where), request.task
    words, limit = asked.label_words, asked.max_tokens
    task = label_free_task(backbone, records, list(found.classes), asked.template, words, limit, chat=asked.choice)
    tokens = _label_tokens(backbone, task) if labelled else _token_counts(backbone, task)
    reading, forms = None, None
    if tokens is not None:
        measured = measure_forms(request, backbone, task, labelled or records, started)
        task, reading, forms = measured.task, measured.reading, measured.forms
        if measured.is_chat:
            request = replace(request, task=asked.model_copy(update={"chat": True}))
            tokens = _token_counts(backbone, task)
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
            raise EndpointError(
                f"{named('endpoint_model')} and {named('endpoint_key_env')} need {named('endpoint')} with an address"
            )
        return None
    if not request.endpoint_model:
        raise EndpointError(
            f"{named('endpoint')} needs {named('endpoint_model')}, the name that the server knows the model by"
        )
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
    reading: Measurement | None,
    endpoint: Endpoint | None,
    started: Callable[[str], Callable[[Event], None]],
) -> MeasuredScores:
    """Score what was read, and ask the endpoint where one is named."""
    truth = [task.verbalizer.index(str(record.label)) for record in labelled]
    found = MeasuredScores()
    if reading is not None and reading.logits is not None and labelled:
        labels = torch.tensor([truth[row] for row in reading.rows])
        calibrated = calibrated_accuracy(reading.logits, labels, request.seed)
        found = MeasuredScores(accuracy(reading.logits, labels), calibrated)
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
