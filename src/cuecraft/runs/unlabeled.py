"""What `tune --unlabeled` does."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cuecraft.data import Record, read_partly_labelled
from cuecraft.errors import CuecraftWarning, DataError, MethodError
from cuecraft.events import Event
from cuecraft.options import make_options
from cuecraft.prompts import check_target
from cuecraft.runs.examples import check_labels, read_test, unzip
from cuecraft.runs.requests import TuneRequest
from cuecraft.runs.tuning import finished, make_classifier
from cuecraft.search.label_free import LabelFreeOutcome, LabelFreeSearch
from cuecraft.search.label_free.pool import read_cues
from cuecraft.task import Verbalizer


def run_label_free(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Choose a prompt without labels; as `run_tune`, with all cues and their scores in the document."""
    begun = time.perf_counter()
    check_target(request.out)
    classes = check_label_free(request)
    texts = read_unlabelled(request)
    test: list[Record] = []
    if request.test:
        test = read_test(request, request.test)
        check_labels("--classes", [Record({}, name) for name in classes], {request.test: test})
    classifier = make_classifier(request, request.method_options)
    prior = _shares(request.prior)
    listener = started(LabelFreeSearch.name)
    classifier.fit_unlabeled(unzip(texts)[0], classes, prior, report=listener, stop=request.stop, then=len(test))
    outcome = classifier.outcome_
    assert isinstance(outcome, LabelFreeOutcome)
    rows = [{"rank": row.rank, "cue": row.cue, "scores": dict(row.scores)} for row in outcome.leaderboard]
    found = finished(classifier, request, test, begun, started)
    return found | {"task_type": outcome.task_type, "texts": outcome.texts, "cues": rows}


def read_unlabelled(request: TuneRequest) -> list[Record]:
    """Return the texts to choose by; labels are not read."""
    records = read_partly_labelled(request.train, request.text_columns, request.label_column, request.reading)
    if any(record.label is not None for record in records):
        warnings.warn(
            f"{request.train}: the labels in column {request.label_column!r} are not used (--unlabeled)",
            CuecraftWarning,
            stacklevel=2,
        )
    return records


def check_label_free(request: TuneRequest) -> tuple[str, ...]:
    """Return the classes.

    Raises:
        MethodError: something was asked for that needs labels, or an option cannot be used.
        DataError: the classes are not named, or a file of cues cannot be read.
    """
    given: dict[str, object] = {"--dev": request.dev, "--shots": request.shots, "--checkpoints": request.checkpoints}
    given |= {"--vocab-from": request.vocab_from, "--first": request.first}
    for name, value in given.items():
        if value is not None:
            raise MethodError(f"{name} has no meaning with --unlabeled; leave one of them out")
    if request.test_size is not None and request.test is None:
        raise MethodError("--test-size needs --test with --unlabeled; no row of the data has a label to test by")
    if request.seeds is not None:
        raise MethodError("--seeds has no meaning with --unlabeled, which draws nothing but the texts; leave it out")
    if request.label_words == "auto":
        raise MethodError("label words are searched with labels; without any, give --label-words CLASS=word")
    classes = request.classes or tuple(request.label_words or ())
    if not classes:
        raise DataError("without labels the classes must be named; give --label-words CLASS=word, or --classes a,b")
    Verbalizer.from_labels(classes, request.label_words)
    search = make_options(LabelFreeSearch, request.method_options)
    if search.pool_file is not None:
        read_cues(search.pool_file)
    return classes


def _shares(values: Sequence[str]) -> dict[str, float] | list[float] | None:
    """Return the classes' shares of words such as `0.9,0.1`, or `spam=0.1` and `ham=0.9`; None for no words.

    Raises:
        DataError: something else than numbers.
    """
    pairs = [value.rpartition("=") for value in values]
    try:
        if any(name for name, _, _ in pairs):
            return {name: float(share) for name, _, share in pairs}
        return [float(share) for value in values for share in value.split(",")] or None
    except ValueError:
        raise DataError(
            f"--prior {' '.join(values)} is not shares of classes; write 0.9,0.1, or CLASS=0.9 for each class"
        ) from None
