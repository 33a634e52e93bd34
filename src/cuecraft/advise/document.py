"""All that was found, as one JSON-ready document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuecraft.advise.costs import Sizes, expected
from cuecraft.advise.endpoint import Reference
from cuecraft.advise.lengths import Lengths
from cuecraft.advise.measure import Accuracy, Reading, answer_shares
from cuecraft.advise.next_step import beginning_words, command_line, next_command
from cuecraft.advise.request import AdviseRequest
from cuecraft.advise.rules import Facts, Fit, findings, fitting, worth
from cuecraft.advise.survey import Survey
from cuecraft.backbone import AnyBackbone, HeadKind
from cuecraft.task import Task

_SHOWN = 5  # contradictions that are listed
_SCARCE = 4  # labels of a class that has few compared with others


@dataclass(frozen=True)
class Scores:
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
    reading: Reading | None,
    scores: Scores,
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
        if backbone.head_kind is not HeadKind.SEQUENCE
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
        "room": lengths.room,
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
    scores: Scores,
) -> Facts:
    """Return the figures that the rules look at; arguments as in `make_document`."""
    counts = [count for count in found.classes.values() if count]
    words = task.verbalizer.labels if backbone.head_kind is not HeadKind.SEQUENCE else ()
    own, calibrated, endpoint = scores.zero_shot, scores.calibrated, scores.endpoint
    here, majority = calibrated or own, found.majority
    return Facts(
        cut_share=lengths.cut_share,
        room=lengths.room,
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
