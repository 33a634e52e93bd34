"""What `tune` does, with labels, without, or with several seeds, and what `words` does.

Files in, an artifact and a JSON-ready document out.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact import check_target, member_folders
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import ArtifactError, CuecraftWarning, DataError, MethodError, named
from cuecraft.core.events import Event
from cuecraft.core.options import make_options, option_places
from cuecraft.core.seeding import numpy_generator
from cuecraft.core.storage import MANIFEST
from cuecraft.data import Record, k_shot_split, read_partly_labelled, read_records, subsample
from cuecraft.methods.prepare import data_entry, make_problem, make_task
from cuecraft.methods.registry import METHODS, make_method
from cuecraft.methods.search.label_free import LabelFreeOutcome, LabelFreeSearch
from cuecraft.methods.search.label_free.pool import read_cues
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.runs.spec import TuneRequest, WordsRequest
from cuecraft.task import Verbalizer
from cuecraft.task.answers.labels import default_word, distinct_words

_SPREAD = ("dev_accuracy", "held_out_accuracy", "test_accuracy", "test_macro_f1")


def train_and_dev(
    request: TuneRequest | WordsRequest, first: int | None = None
) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train and dev records as asked for, and those that are left over to test on.

    Args:
        request: what was asked for.
        first: learn from so many rows of the training file, in its order, alone; the later ones are left over.
    """
    columns = (request.text_columns, request.label_column, request.reading)
    train = read_records(request.train, *columns)
    dev = read_records(request.dev, *columns) if request.dev else None
    later: list[Record] = []
    if first is not None:
        train, later = train[:first], train[first:]
    if not request.shots:
        return train, dev, later
    split = k_shot_split(train, request.shots, request.seed, with_dev=dev is None)
    return split.train, split.dev if dev is None else dev, split.rest if first is None else later


def read_splits(request: TuneRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records as asked for."""
    train, dev, rest = train_and_dev(request, request.first)
    if request.test:
        return train, dev, read_test(request, request.test)
    if request.first is not None:
        if not rest:
            raise DataError(
                f"{named('data.first')} {request.first} leaves no row of {request.train} to test on; lower it, or "
                f"give {named('data.test')}"
            )
        return train, dev, _test_rows(request, rest)
    if request.test_size is None:
        return train, dev, []
    if not request.shots:
        raise DataError(
            f"{named('data.test_size')} needs {named('data.test')}, or {named('data.shots')} or "
            f"{named('data.first')} so that rows of {named('data.train')} are left to test on"
        )
    if not rest:
        raise DataError(
            f"{named('data.shots')} {request.shots} leaves no rows of {request.train} to test on; lower it or give "
            f"{named('data.test')}"
        )
    return train, dev, subsample(rest, request.test_size, request.seed)


def read_test(request: TuneRequest, source: str) -> list[Record]:
    """Return the rows of a test file that were asked for."""
    test = read_records(source, request.text_columns, request.label_column, request.reading)
    return _test_rows(request, test)


def _test_rows(request: TuneRequest, rows: Sequence[Record]) -> list[Record]:
    """Draw test rows; with several seeds the same for all: the spread shall not be that of the test."""
    return subsample(rows, request.test_size, request.seeds[0] if request.seeds else request.seed)


def check_labels(source: str, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> None:
    """Raise DataError, before anything long is done, where other files have a class that the training file has not."""
    known = {record.label for record in train}
    for name, records in others.items():
        for row, record in enumerate(records, start=1):
            if record.label not in known:
                raise DataError(
                    f"{name} row {record.row or row}: label {record.label!r} is not one of the training classes "
                    f"({', '.join(sorted(map(str, known)))}); fix the label or add the class to {source}"
                )


def unzip(records: Sequence[Record]) -> tuple[list[dict[str, str]], list[str | None]]:
    """Return texts, as mappings from field to string, and labels."""
    return [dict(record.fields) for record in records], [record.label for record in records]


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
        raise MethodError(
            f"{named('task.classes')} and {named('tune.prior')} go with {named('unlabeled')}; with labels, the "
            "classes are the labels'"
        )
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
        f"give a longer {named('time_limit')}, or fewer rows with {named('data.test_size')}",
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
        raise MethodError(
            f"{named('vocab_from')} goes with methods that search for words ({able}), not with {request.method}"
        )
    for place in places[request.method]:
        if place in options:
            raise MethodError(
                f"{named('vocab_from')} and {named('option')} {place} both name a corpus; give one of them"
            )
        options[place] = str(request.vocab_from)
    return options


def run_label_free(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Choose a prompt without labels; as `run_tune`, with all cues and their scores in the document."""
    begun = time.perf_counter()
    check_target(request.out)
    classes = check_label_free(request)
    texts = read_unlabelled(request)
    test: list[Record] = []
    if request.test:
        test = read_test(request, request.test)
        check_labels("the classes", [Record({}, name) for name in classes], {request.test: test})
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
            f"{request.train}: the labels in column {request.label_column!r} are not used ({named('unlabeled')})",
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
    given: dict[str, object] = {"data.dev": request.dev, "data.shots": request.shots, "data.first": request.first}
    given |= {"checkpoints": request.checkpoints, "vocab_from": request.vocab_from}
    for place, value in given.items():
        if value is not None:
            raise MethodError(f"{named(place)} has no meaning with {named('unlabeled')}; leave one of them out")
    if request.test_size is not None and request.test is None:
        raise MethodError(
            f"{named('data.test_size')} needs {named('data.test')} with {named('unlabeled')}; no row of the data "
            "has a label to test by"
        )
    if request.seeds is not None:
        raise MethodError(
            f"{named('seeds')} has no meaning with {named('unlabeled')}, which draws nothing but the texts; leave "
            "it out"
        )
    if request.label_words == "auto":
        raise MethodError(
            f"label words are searched with labels; without any, give {named('task.label_words')} CLASS=word"
        )
    classes = request.classes or tuple(request.label_words or ())
    if not classes:
        raise DataError(
            f"without labels the classes must be named; give {named('task.label_words')} CLASS=word, or "
            f"{named('task.classes')} a,b"
        )
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
            f"{named('tune.prior')} {' '.join(values)} is not shares of classes; write 0.9,0.1, or CLASS=0.9 for "
            "each class"
        ) from None


def run_seeds(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Tune with several seeds; return the document of `cuecraft tune --seeds --json`.

    Every seed's artifact is `seed-S` in the folder asked for. Where examples are drawn (`shots`, the hold-out), each
    seed draws its own. Rows of a test file are the same for all.

    Args:
        request: as for one seed, with at least two seeds; its own seed plays no part.
        started: called with what begins, and returns the listener of its steps.

    Raises:
        CuecraftError: anything that the user can fix; artifacts of the seeds before are kept.
    """
    seeds = request.seeds or ()
    if len(set(seeds)) < 2:
        raise DataError(f"{named('seeds')} needs two seeds at least, such as 0,1,2; for one, give {named('seed')}")
    folders = {seed: request.out / f"seed-{seed}" for seed in seeds}
    _check_folder(request.out, list(folders.values()))
    runs = {}
    for seed, folder in folders.items():
        checkpoints = request.checkpoints and request.checkpoints.within(f"seed-{seed}")
        own = replace(request, seed=seed, out=folder, checkpoints=checkpoints)
        runs[seed] = tune_once(own, lambda name, seed=seed: started(f"{name}, seed {seed}"))  # type: ignore[misc]
    return {
        "method": request.method,
        "folder": str(request.out),
        "seeds": [{"seed": seed, **document} for seed, document in runs.items()],
        "spread": _spread(list(runs.values())),
        "ensemble_test_accuracy": _ensemble_accuracy(request, started),
    }


def _check_folder(out: Path, folders: Sequence[Path]) -> None:
    """Raise an error where the folder cannot become that of these seeds alone, before anything long is done."""
    if (out / MANIFEST).exists():
        raise ArtifactError(f"{out}: is an artifact; give {named('seeds')} another {named('out')}")
    others = [path.name for path in member_folders(out) if path not in folders]
    if others:
        raise ArtifactError(
            f"{out}: has artifacts of other seeds ({', '.join(others)}); remove them, or give another {named('out')}"
        )
    for folder in folders:
        check_target(folder)


def _spread(documents: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation (denominator S - 1) over seeds of each accuracy that all of them have."""
    found = {name: [document["metrics"].get(name) for document in documents] for name in _SPREAD}
    return {
        name: {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
        for name, values in found.items()
        if all(value is not None for value in values)
    }


def _ensemble_accuracy(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> float | None:
    """Return the accuracy on the test file; None without one: rows that one seed leaves over are another's examples."""
    if not request.test:
        return None
    texts, labels = unzip(read_test(request, request.test))
    where = {"device": request.device, "local_files_only": request.local_files_only, "dtype": request.dtype}
    ensemble = PromptEnsemble.load(request.out, request.model, **where)  # type: ignore[arg-type]
    likeliest = ensemble.predict_proba(texts, started("ensemble")).argmax(1)
    names = [str(name) for name in ensemble.classes_.tolist()]
    return float(np.mean([names[n] == label for n, label in zip(likeliest, labels, strict=True)]))


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
