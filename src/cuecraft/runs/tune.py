"""What `tune` does, with labels, without, or with several seeds, and what `words` does.

Files in, an artifact and a JSON-ready document out.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact import check_target, member_folders
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import ArtifactError, CuecraftWarning, DataError, MethodError, named
from cuecraft.core.events import Event, Started
from cuecraft.core.seeding import numpy_generator
from cuecraft.core.storage import MANIFEST
from cuecraft.core.warned import errors_first
from cuecraft.data import Reading, Record, k_shot_split, read_partly_labelled, read_records, subsample
from cuecraft.methods.prepare import data_entry, make_problem, make_task
from cuecraft.methods.search.label_free import LabelFreeOutcome, LabelFreeSearch
from cuecraft.methods.search.label_free.pool import read_cues
from cuecraft.runs.answers import asked_of, checked_space, columns_of, settled
from cuecraft.runs.spec import RunFiles, RunSpec, WordsSpec
from cuecraft.task import AnswerSpace, Verbalizer
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.labels import LabelOptions
from cuecraft.task.answers.words import default_word, distinct_words
from cuecraft.task.sections import DataSection


def train_and_dev(
    data: DataSection, asked: Asked, seed: int, reading: Reading
) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train and dev records as asked for, and those that are left over to test on."""
    columns = (data.text_columns, asked.rows, reading)
    train = read_records(data.train, *columns)
    dev = read_records(data.dev, *columns) if data.dev else None
    later: list[Record] = []
    if data.first is not None:
        train, later = train[: data.first], train[data.first :]
    if not data.shots:
        return train, dev, later
    space = asked.space(train, distinct_words)
    golds = space.golds(train)
    groups, titles = space.groups(golds), space.group_titles(golds)
    split = k_shot_split(train, data.shots, seed, with_dev=dev is None, groups=groups, titles=titles)
    return split.train, split.dev if dev is None else dev, split.rest if data.first is None else later


def read_splits(
    spec: RunSpec, asked: Asked, reading: Reading
) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records as asked for."""
    data = spec.data
    train, dev, rest = train_and_dev(data, asked, spec.seed, reading)
    if data.test:
        return train, dev, read_test(spec, data.test, asked, reading)
    if data.first is not None:
        if not rest:
            raise DataError(
                f"{named('data.first')} {data.first} leaves no row of {data.train} to test on; lower it, or give "
                f"{named('data.test')}"
            )
        return train, dev, _test_rows(spec, rest)
    if data.test_size is None:
        return train, dev, []
    if not data.shots:
        raise DataError(
            f"{named('data.test_size')} needs {named('data.test')}, or {named('data.shots')} or "
            f"{named('data.first')} so that rows of {named('data.train')} are left to test on"
        )
    if not rest:
        raise DataError(
            f"{named('data.shots')} {data.shots} leaves no rows of {data.train} to test on; lower it or give "
            f"{named('data.test')}"
        )
    return train, dev, subsample(rest, data.test_size, spec.seed)


def read_test(spec: RunSpec, source: str, asked: Asked, reading: Reading) -> list[Record]:
    """Return the rows of a test file that were asked for."""
    return _test_rows(spec, read_records(source, spec.data.text_columns, asked.rows, reading))


def _test_rows(spec: RunSpec, rows: Sequence[Record]) -> list[Record]:
    """Draw test rows; with several seeds the same for all: the spread shall not be that of the test."""
    return subsample(rows, spec.data.test_size, spec.seeds[0] if spec.seeds else spec.seed)


def tune_once(spec: RunSpec, files: RunFiles, started: Started) -> dict[str, Any]:
    """Tune, test, and write the artifact; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    begun = time.perf_counter()
    check_target(files.out)
    asked = asked_of(spec, files.reading)
    train, dev, test = checked_splits(spec, asked, files.reading)
    classifier = make_classifier(spec, spec.options)
    classifier.fit_records(train, dev or None, asked, started(spec.method), files.checkpoints, len(test))
    return finished(classifier, spec, files, test, begun, started)


def checked_splits(
    spec: RunSpec, asked: Asked, reading: Reading
) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records, once all is checked that can be without the model.

    Raises:
        CuecraftError: the data or the label words cannot be used.
    """
    if spec.task.classes:
        raise MethodError(
            f"{named('task.classes')} and {named('tune.prior')} go with {named('unlabeled')}; with labels, the classes "
            "are the labels'"
        )
    train, dev, test = read_splits(spec, asked, reading)
    space = checked_space(asked, spec.task.label_words, asked.known(train, dev))
    for records in (train, dev or [], test):
        space.golds(records)  # an error is better here than after something long
    return train, dev, test


def make_classifier(spec: RunSpec, options: Mapping[str, Any]) -> PromptClassifier:
    """Return the classifier that was asked for, with the method's options."""
    return PromptClassifier(
        spec.model.name,
        spec.method,
        answers=spec.task.answers,
        template=spec.task.template,
        chat=spec.task.choice,
        label_words=spec.task.label_words,
        method_options=options,
        max_tokens=spec.task.max_tokens,
        time_limit=spec.time_limit,
        seed=spec.seed,
        head=spec.model.head,
        **spec.model.where,
    )


def finished(
    classifier: PromptClassifier, spec: RunSpec, files: RunFiles, test: Sequence[Record], begun: float, started: Started
) -> dict[str, Any]:
    """Test a fitted classifier, write its artifact and return the document."""
    answers = classifier.artifact_.task.answers
    metrics: dict[str, float | None] = dict(classifier.artifact_.manifest.metrics)
    metrics.setdefault(f"dev_{answers.tuning_score}", None)
    tested: dict[str, float] = {}
    if test:
        found, test = _tested(classifier, spec, test, started("testing"))
    if test:
        tested = test_metrics(answers, found)
        classifier.artifact_ = classifier.artifact_.with_test(tested, data_entry(test))
    sha256 = classifier.save(files.out)
    outcome, reads_words = classifier.outcome_, classifier.artifact_.reads_words
    names = tested or test_metrics(answers, {})
    return {
        "method": classifier.artifact_.manifest.method,
        "artifact": str(files.out),
        "artifact_sha256": sha256,
        "seconds": round(time.perf_counter() - begun, 2),
        "metrics": metrics | {name: tested.get(name) for name in names},
        "tuned": outcome.is_tuned,
        "prompt": classifier.artifact_.manifest.prompt.described,
        "words": classifier.artifact_.manifest.words,
        "answers": answers.kind,
        "primary": answers.primary,
        "classes": list(answers.options),
        "label_words": {label: list(own) for label, own in answers.options.items()} if reads_words else {},
        "vocabulary": next((e["vocabulary"] for e in classifier.trace_ if "vocabulary" in e), None),
        "template": classifier.artifact_.task.template.source,
        "chat": classifier.artifact_.task.template.chat is not None,
        "test_rows": len(test),
        "padding": round(classifier.padding_, 4),
        "verdict": outcome.verdict.document() if outcome.verdict else None,
        "leaderboard": [row.document() for row in outcome.tried],
    }


def test_metrics(answers: AnswerSpace, found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return scores on test rows by their names in documents, the primary score of all three prompts first.

    Args:
        answers: the answer space.
        found: as `PromptClassifier.scores` gives them; empty for none, whose values are None.
    """
    primary, tuned = answers.primary, found.get("tuned", dict.fromkeys(answers.measures))
    names = {"tuned": "test", "untuned": "untuned_test", "calibrated": "calibrated_untuned_test"}
    first = {f"{name}_{primary}": found.get(key, {}).get(primary) for key, name in names.items()}
    return first | {f"test_{name}": value for name, value in tuned.items() if name != primary}


def _tested(
    classifier: PromptClassifier, spec: RunSpec, test: Sequence[Record], listener: Callable[[Event], None]
) -> tuple[Mapping[str, Mapping[str, float]], Sequence[Record]]:
    """Return the scores on the test rows, and those that were answered: all, unless the time limit ends before.

    They are answered in random order then, so that those which were are a sample of all.
    """
    order: Sequence[int] = range(len(test))
    if spec.time_limit is not None:
        order = numpy_generator(spec.seed, "test rows in time").permutation(len(test)).tolist()
    found, count = classifier.scores_in_time([test[row] for row in order], listener)
    if count == len(test):
        return found, test
    warnings.warn(
        f"{count} of {len(test)} test rows were answered within the time limit, drawn at random; "
        f"give a longer {named('time_limit')}, or fewer rows with {named('data.test_size')}",
        CuecraftWarning,
        stacklevel=2,
    )
    return found, [test[row] for row in sorted(order[:count])]


def run_label_free(spec: RunSpec, files: RunFiles, started: Started) -> dict[str, Any]:
    """Choose a prompt without labels; as `run_tune`, with all cues and their scores in the document."""
    begun = time.perf_counter()
    check_target(files.out)
    classes = check_label_free(spec)
    texts = read_unlabelled(spec.data, files.reading)
    test: list[Record] = []
    if spec.data.test:
        test = read_test(spec, spec.data.test, asked_of(spec, files.reading), files.reading)
        Verbalizer.from_labels(classes, distinct_words).golds(test)
    options = spec.options
    prior = options.pop("prior", None)
    classifier = make_classifier(spec, options)
    listener = started(LabelFreeSearch.name)
    fields = [dict(record.fields) for record in texts]
    classifier.fit_unlabeled(fields, classes, prior, report=listener, stop=files.stop, then=len(test))
    outcome = classifier.outcome_
    assert isinstance(outcome, LabelFreeOutcome)
    rows = [{"rank": row.rank, "cue": row.cue, "scores": dict(row.scores)} for row in outcome.leaderboard]
    found = finished(classifier, spec, files, test, begun, started)
    return found | {"task_type": outcome.task_type, "texts": outcome.texts, "cues": rows}


def read_unlabelled(data: DataSection, reading: Reading) -> list[Record]:
    """Return the texts to choose by; labels are not read."""
    column = data.label_column or "label"
    records = read_partly_labelled(data.train, data.text_columns, column, reading)
    if any(record.label is not None for record in records):
        warnings.warn(
            f"{data.train}: the labels in column {column!r} are not used ({named('unlabeled')})",
            CuecraftWarning,
            stacklevel=2,
        )
    return records


def check_label_free(spec: RunSpec) -> tuple[str, ...]:
    """Return the classes.

    Raises:
        MethodError: something was asked for that needs labels.
        DataError: the classes are not named, or a file of cues cannot be read.
    """
    data, words = spec.data, spec.task.label_words
    given = {"data.dev": data.dev, "data.shots": data.shots, "data.first": data.first}
    for place, value in given.items():
        if value is not None:
            raise MethodError(f"{named(place)} has no meaning with {named('unlabeled')}; leave one of them out")
    if data.test_size is not None and data.test is None:
        raise MethodError(
            f"{named('data.test_size')} needs {named('data.test')} with {named('unlabeled')}; no row of the data has a "
            "label to test by"
        )
    if spec.seeds is not None:
        raise MethodError(
            f"{named('seeds')} has no meaning with {named('unlabeled')}, which draws nothing but the texts; leave it "
            "out"
        )
    if words == "auto":
        raise MethodError(
            f"label words are searched with labels; without any, give {named('task.label_words')} CLASS=word"
        )
    classes = tuple(spec.task.classes or words or ())
    if not classes:
        raise DataError(
            f"without labels the classes must be named; give {named('task.label_words')} CLASS=word, or "
            f"{named('task.classes')} a,b"
        )
    Verbalizer.from_labels(classes, words)
    assert isinstance(spec.tune, LabelFreeSearch)
    if spec.tune.pool_file is not None:
        read_cues(spec.tune.pool_file)
    return classes


def run_seeds(spec: RunSpec, files: RunFiles, started: Started) -> dict[str, Any]:
    """Tune with several seeds; return the document of `cuecraft tune --seeds --json`.

    Every seed's artifact is `seed-S` in the folder asked for. Where examples are drawn (`shots`, the hold-out), each
    seed draws its own. Rows of a test file are the same for all.

    Args:
        spec: as for one seed, with several; its own seed plays no part.
        files: with the folder of all.
        started: called with what begins, and returns the listener of its steps.

    Raises:
        CuecraftError: anything that the user can fix; artifacts of the seeds before are kept.
    """
    folders = {seed: files.out / f"seed-{seed}" for seed in spec.seeds or ()}
    _check_folder(files.out, list(folders.values()))
    runs = {}
    for seed, folder in folders.items():
        checkpoints = files.checkpoints and files.checkpoints.within(f"seed-{seed}")
        own = (spec.model_copy(update={"seed": seed}), replace(files, out=folder, checkpoints=checkpoints))
        runs[seed] = tune_once(*own, lambda name, seed=seed: started(f"{name}, seed {seed}"))  # type: ignore[misc]
    return {
        "method": spec.method,
        "folder": str(files.out),
        "seeds": [{"seed": seed, **document} for seed, document in runs.items()],
        "spread": _spread(list(runs.values())),
        **_ensemble_score(spec, files, next(iter(runs.values()))["primary"], started),
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
    """Return mean and standard deviation (denominator S - 1) over seeds of each score that all of them have."""
    names = [name for name in documents[0]["metrics"] if name.startswith(("dev_", "held_out_", "test_"))]
    found = {name: [document["metrics"].get(name) for document in documents] for name in names}
    return {
        name: {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
        for name, values in found.items()
        if all(value is not None for value in values)
    }


def _ensemble_score(spec: RunSpec, files: RunFiles, primary: str, started: Started) -> dict[str, float | None]:
    """Return the primary score on the test file, by its name in documents.

    Without a file it is None: rows that one seed leaves over are another's examples.
    """
    name = f"ensemble_test_{primary}"
    if not spec.data.test:
        return {name: None}
    test = read_test(spec, spec.data.test, asked_of(spec, files.reading), files.reading)
    ensemble = PromptEnsemble.load(files.out, spec.model.name, **spec.model.where)
    examples = ensemble.task.examples(test)
    decisions = ensemble.decide(examples, started("ensemble"))
    return {name: ensemble.task.answers.measure(decisions, [example.gold for example in examples])[primary]}


def run_words(spec: WordsSpec, reading: Reading, report: Callable[[Event], None]) -> dict[str, Any]:
    """Search label words; return the document of `cuecraft words --json`.

    Raises:
        CuecraftError: anything that the user can fix.
    """
    begun = time.perf_counter()
    asked = Asked(LabelOptions(), columns_of(spec.data))
    train, dev, _ = train_and_dev(spec.data, asked, spec.seed, reading)
    labels = sorted({record.label for record in train})
    classes = Verbalizer.from_labels(labels, distinct_words)
    classes.golds(dev or [])
    backbone = load_backbone(spec.model.name, spec.model.head, **spec.model.where)
    current = spec.task.label_words or {label: [default_word(label)] for label in labels}
    task = make_task(backbone, train, spec.task.template, current, chat=spec.task.choice)
    found = spec.search.search(make_problem(backbone, task, train, dev, seed=spec.seed, report=report))
    return {
        "model": backbone.name,
        "template": task.template.source,
        **found.document(),
        "seconds": round(time.perf_counter() - begun, 2),
    }


def run_tune(spec: RunSpec, files: RunFiles, started: Started) -> dict[str, Any]:
    """Do what was asked for; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    with errors_first(started) as heard:
        spec = settled(spec, files.reading)
        run = run_label_free if spec.is_label_free else tune_once if spec.seeds is None else run_seeds
        return run(spec, files, heard) | files.reading.document()
