"""What `tune` does with labels: files in, an artifact and a JSON-ready document out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cuecraft.classifier import PromptClassifier
from cuecraft.data import Record
from cuecraft.errors import CuecraftWarning, MethodError
from cuecraft.events import Event
from cuecraft.options import option_places
from cuecraft.prompts import check_target
from cuecraft.runs.examples import check_labels, read_splits, unzip
from cuecraft.runs.requests import TuneRequest
from cuecraft.seeding import numpy_generator
from cuecraft.task import Verbalizer
from cuecraft.task.verbalizer import distinct_words
from cuecraft.tune.prepare import data_entry
from cuecraft.tune.registry import METHODS, make_method


def tune_once(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Tune, test, and write the artifact; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    begun = time.perf_counter()
    check_target(request.out)
    train, dev, test = checked_splits(request)
    classifier = make_classifier(request, _method_options(request))
    listener = started(request.method)
    held_out = unzip(dev) if dev else None
    classifier.fit(*unzip(train), dev=held_out, report=listener, checkpoints=request.checkpoints, then=len(test))
    return finished(classifier, request, test, begun, started)


def checked_splits(request: TuneRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records, once all is checked that can be without the model.

    Raises:
        CuecraftError: the data, the method's options or the label words cannot be used.
    """
    if request.classes or request.prior:
        raise MethodError("--classes and --prior go with --unlabeled; with labels, the classes are the labels'")
    make_method(request.method, _method_options(request))
    train, dev, test = read_splits(request)
    others = {request.dev or f"dev rows of {request.train}": dev or [], request.test or request.train: test}
    check_labels(request.train, train, others)
    if request.label_words != "auto":
        labels = sorted({str(record.label) for record in train})
        # Whether names do as words depends on the model, which may have a class head.
        Verbalizer.from_labels(labels, request.label_words or distinct_words(labels))
    return train, dev, test


def make_classifier(request: TuneRequest, options: Mapping[str, Any]) -> PromptClassifier:
    """Return the classifier that was asked for, with the method's options."""
    return PromptClassifier(
        request.model,
        request.method,
        template=request.template,
        chat=request.chat,
        label_words=request.label_words,
        method_options=options,
        max_tokens=request.max_tokens,
        time_limit=request.time_limit,
        seed=request.seed,
        head=request.head,
        device=request.device,
        local_files_only=request.local_files_only,
        dtype=request.dtype,
    )


def finished(
    classifier: PromptClassifier,
    request: TuneRequest,
    test: Sequence[Record],
    begun: float,
    started: Callable[[str], Callable[[Event], None]],
) -> dict[str, Any]:
    """Test a fitted classifier, write its artifact and return the document."""
    metrics: dict[str, float | None] = dict(classifier.artifact_.manifest.metrics)
    metrics.setdefault("dev_accuracy", None)
    tested: dict[str, float] = {}
    if test:
        found, test = _tested(classifier, request, test, started("testing"))
    if test:
        tested = {
            "test_accuracy": found["tuned"]["accuracy"],
            "untuned_test_accuracy": found["untuned"]["accuracy"],
            "calibrated_untuned_test_accuracy": found["calibrated"]["accuracy"],
            "test_macro_f1": found["tuned"]["macro_f1"],
        }
        classifier.artifact_ = classifier.artifact_.with_test(tested, data_entry(test))
    sha256 = classifier.save(request.out)
    outcome, verbalizer = classifier.outcome_, classifier.artifact_.task.verbalizer
    names = ("test_accuracy", "untuned_test_accuracy", "calibrated_untuned_test_accuracy", "test_macro_f1")
    return {
        "method": classifier.artifact_.manifest.method,
        "artifact": str(request.out),
        "artifact_sha256": sha256,
        "seconds": round(time.perf_counter() - begun, 2),
        "metrics": metrics | {name: tested.get(name) for name in names},
        "tuned": outcome.is_tuned,
        "prompt": classifier.artifact_.manifest.prompt.described,
        "words": classifier.artifact_.manifest.words,
        "label_words": {label: list(own) for label, own in zip(verbalizer.labels, verbalizer.words, strict=True)},
        "vocabulary": next((e["vocabulary"] for e in classifier.trace_ if "vocabulary" in e), None),
        "template": classifier.artifact_.task.template.source,
        "chat": classifier.artifact_.task.template.chat is not None,
        "test_rows": len(test),
        "padding": round(classifier.padding_, 4),
        "verdict": outcome.verdict.document() if outcome.verdict else None,
        "leaderboard": [asdict(row) for row in outcome.tried],
    }


def _tested(
    classifier: PromptClassifier, request: TuneRequest, test: Sequence[Record], listener: Callable[[Event], None]
) -> tuple[Mapping[str, Mapping[str, float]], Sequence[Record]]:
    """Return the scores on the test rows, and those that were answered: all, unless the time limit ends before.

    They are answered in random order then, so that those which were are a sample of all.
    """
    order: Sequence[int] = range(len(test))
    if request.time_limit is not None:
        order = numpy_generator(request.seed, "test rows in time").permutation(len(test)).tolist()
    drawn = [test[row] for row in order]
    found, count = classifier.scores_in_time(*unzip(drawn), report=listener)
    if count == len(test):
        return found, test
    warnings.warn(
        f"{count} of {len(test)} test rows were answered within the time limit, drawn at random; "
        "give a longer --time-limit, or fewer rows with --test-size",
        CuecraftWarning,
        stacklevel=2,
    )
    return found, [test[row] for row in sorted(order[:count])]


def _method_options(request: TuneRequest) -> dict[str, Any]:
    """Return the method's options with the corpus of `--vocab-from` where its search takes it."""
    options = dict(request.method_options)
    if request.vocab_from is None or request.method not in METHODS:
        return options
    places = {name: option_places(kind, "vocabulary.corpus") for name, kind in METHODS.items()}
    if not places[request.method]:
        able = ", ".join(name for name, found in places.items() if found)
        raise MethodError(f"--vocab-from goes with methods that search for words ({able}), not with {request.method}")
    for place in places[request.method]:
        if place in options:
            raise MethodError(f"--vocab-from and --option {place} both name a corpus; give one of them")
        options[place] = str(request.vocab_from)
    return options
