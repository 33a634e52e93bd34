"""What the commands `tune`, `multitask`, `mix` and `predict` do: files in, artifacts and JSON-ready documents out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cuecraft.backbone import load_backbone
from cuecraft.classifier import PromptClassifier
from cuecraft.data import Record, k_shot_split, read_partly_labelled, read_records, stream_texts, subsample
from cuecraft.errors import CuecraftWarning, DataError, MethodError
from cuecraft.family import PromptFamily, check_family_target
from cuecraft.method import Event
from cuecraft.prompts import check_target, load_artifact
from cuecraft.search.label_free import LabelFreeOutcome, LabelFreeSearch
from cuecraft.search.label_words import LabelWordSearch
from cuecraft.task.verbalizer import default_word
from cuecraft.tune.mix import Combination, mix_lora
from cuecraft.tune.multitask import MultitaskTuning
from cuecraft.tune.prepare import data_entry, make_problem, make_task
from cuecraft.tune.registry import METHODS, make_options, option_places


@dataclass(frozen=True)
class TuneRequest:
    """What `cuecraft tune` was asked for; see its help for each."""

    train: str
    dev: str | None
    test: str | None
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    method: str
    method_options: Mapping[str, Any]
    vocab_from: Path | None
    template: str | None
    label_words: Mapping[str, Sequence[str]] | Literal["auto"] | None
    shots: int | None
    head: str | None
    max_tokens: int | None
    seed: int
    time_limit: float | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Path | None
    out: Path
    unlabeled: bool
    classes: tuple[str, ...] | None
    prior: tuple[str, ...]


def run_tune(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Tune, or choose without labels, test, and write the artifact; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can mend; nothing is written then.
    """
    if request.unlabeled:
        return _run_label_free(request, started)
    if request.classes or request.prior:
        raise MethodError("--classes and --prior go with --unlabeled; with labels, the classes are the labels'")
    begun = time.perf_counter()
    check_target(request.out)
    train, dev, test = _splits(request)
    others = {request.dev or f"dev rows of {request.train}": dev or [], request.test or request.train: test}
    check_labels(request.train, train, others)
    classifier = _classifier(request, _method_options(request))
    listener = started(request.method)
    held_out = _unzip(dev) if dev else None
    classifier.fit(*_unzip(train), dev=held_out, report=listener, checkpoints=request.checkpoints)
    return _finished(classifier, request, test, begun, started)


def _run_label_free(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Choose a prompt without labels; as `run_tune`, with all cues and their scores in the document."""
    begun = time.perf_counter()
    check_target(request.out)
    _check_label_free(request)
    if request.label_words == "auto":
        raise MethodError("label words are searched with labels; without any, give --label-words CLASS=word")
    classes = request.classes or tuple(request.label_words or ())
    if not classes:
        raise DataError("without labels the classes must be named; give --label-words CLASS=word, or --classes a,b")
    texts = _texts(request)
    test: list[Record] = []
    if request.test:
        test = read_records(request.test, request.text_columns, request.label_column)
        test = subsample(test, request.test_size, request.seed)
        check_labels("--classes", [Record({}, name) for name in classes], {request.test: test})
    classifier = _classifier(request, request.method_options)
    prior = _shares(request.prior)
    classifier.fit_unlabeled(_unzip(texts)[0], classes, prior, report=started(LabelFreeSearch.name))
    outcome = classifier.outcome_
    assert isinstance(outcome, LabelFreeOutcome)
    rows = [{"rank": row.rank, "cue": row.cue, "scores": dict(row.scores)} for row in outcome.leaderboard]
    found = _finished(classifier, request, test, begun, started)
    return found | {"task_type": outcome.task_type, "texts": outcome.texts, "cues": rows}


def _texts(request: TuneRequest) -> list[Record]:
    if request.train.endswith(".txt"):
        return [Record({"text": line}) for line in stream_texts(request.train)]
    records = read_partly_labelled(request.train, request.text_columns, request.label_column)
    if any(record.label is not None for record in records):
        warnings.warn(
            f"{request.train}: the labels in column {request.label_column!r} are not used (--unlabeled)",
            CuecraftWarning,
            stacklevel=2,
        )
    return records


def _check_label_free(request: TuneRequest) -> None:
    """Raise MethodError where something was asked for that needs labels."""
    given = {"--dev": request.dev, "--shots": request.shots, "--checkpoints": request.checkpoints}
    given |= {"--vocab-from": request.vocab_from}
    for name, value in given.items():
        if value is not None:
            raise MethodError(f"{name} has no meaning with --unlabeled; leave one of them out")
    if request.test_size is not None and request.test is None:
        raise MethodError("--test-size needs --test with --unlabeled; no row of the data has a label to test by")


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


def _classifier(request: TuneRequest, options: Mapping[str, Any]) -> PromptClassifier:
    return PromptClassifier(
        request.model,
        request.method,
        template=request.template,
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


def _finished(
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
        found = classifier.accuracies(*_unzip(test), report=started("testing"))
        tested = {
            "test_accuracy": found["tuned"],
            "untuned_test_accuracy": found["untuned"],
            "calibrated_untuned_test_accuracy": found["calibrated"],
        }
        classifier.artifact_ = classifier.artifact_.with_test(tested, data_entry(test))
    sha256 = classifier.save(request.out)
    outcome, verbalizer = classifier.outcome_, classifier.task_.verbalizer
    names = ("test_accuracy", "untuned_test_accuracy", "calibrated_untuned_test_accuracy")
    return {
        "method": classifier.artifact_.manifest.method,
        "artifact": str(request.out),
        "artifact_sha256": sha256,
        "seconds": round(time.perf_counter() - begun, 2),
        "metrics": metrics | {name: tested.get(name) for name in names},
        "tuned": outcome.is_tuned,
        "prompt": classifier.artifact_.manifest.prompt.text,
        "words": classifier.artifact_.manifest.words,
        "label_words": {label: list(own) for label, own in zip(verbalizer.labels, verbalizer.words, strict=True)},
        "vocabulary": next((e["vocabulary"] for e in classifier.trace_ if "vocabulary" in e), None),
        "template": classifier.task_.template.source,
        "test_rows": len(test),
        "padding": round(classifier.padding_, 4),
        "verdict": outcome.verdict.document() if outcome.verdict else None,
        "leaderboard": [asdict(row) for row in outcome.tried],
    }


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


@dataclass(frozen=True)
class WordsRequest:
    """What `cuecraft words` was asked for; see its help for each."""

    train: str
    dev: str | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    options: Mapping[str, Any]
    template: str | None
    label_words: Mapping[str, Sequence[str]] | None
    shots: int | None
    head: str | None
    seed: int
    where: Mapping[str, Any]


def run_words(request: WordsRequest, report: Callable[[Event], None]) -> dict[str, Any]:
    """Search label words; return the document of `cuecraft words --json`.

    Raises:
        CuecraftError: anything that the user can mend.
    """
    begun = time.perf_counter()
    search = make_options(LabelWordSearch, request.options)
    train, dev, _ = _train_and_dev(request)
    check_labels(request.train, train, {request.dev or f"dev rows of {request.train}": dev or []})
    backbone = load_backbone(request.model, request.head, **request.where)
    labels = sorted({record.label for record in train if record.label is not None})
    current = request.label_words or {label: (default_word(label),) for label in labels}
    task = make_task(backbone, train, request.template, current)
    found = search.search(make_problem(backbone, task, train, dev, seed=request.seed, report=report))
    return {
        "model": backbone.name,
        "template": task.template.source,
        **found.document(),
        "seconds": round(time.perf_counter() - begun, 2),
    }


def _train_and_dev(request: TuneRequest | WordsRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train and dev records as asked for, and those that a k-shot sample leaves over."""
    columns = (request.text_columns, request.label_column)
    train = read_records(request.train, *columns)
    dev = read_records(request.dev, *columns) if request.dev else None
    if not request.shots:
        return train, dev, []
    split = k_shot_split(train, request.shots, request.seed, with_dev=dev is None)
    return split.train, split.dev if dev is None else dev, split.rest


def _splits(request: TuneRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records as asked for."""
    train, dev, rest = _train_and_dev(request)
    if request.test:
        test = read_records(request.test, request.text_columns, request.label_column)
        return train, dev, subsample(test, request.test_size, request.seed)
    if request.test_size is None:
        return train, dev, []
    if not request.shots:
        raise DataError("--test-size needs --test, or --shots so that rows of TRAIN are left over to test on")
    if not rest:
        raise DataError(
            f"--shots {request.shots} leaves no rows of {request.train} to test on; lower it or give --test"
        )
    return train, dev, subsample(rest, request.test_size, request.seed)


def check_labels(source: str, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> None:
    """Raise DataError, before anything long is done, where other files have a class that the training file has not."""
    known = {record.label for record in train}
    for name, records in others.items():
        for row, record in enumerate(records, start=1):
            if record.label not in known:
                raise DataError(
                    f"{name} row {row}: label {record.label!r} is not one of the training classes "
                    f"({', '.join(sorted(map(str, known)))}); mend the label or add the class to {source}"
                )


def _unzip(records: Sequence[Record]) -> tuple[list[dict[str, str]], list[str | None]]:
    return [dict(record.fields) for record in records], [record.label for record in records]


@dataclass(frozen=True)
class MultitaskRequest:
    """What `cuecraft multitask` was asked for; see its help for each."""

    tasks: Mapping[str, str]
    dev: Mapping[str, str]
    test: Mapping[str, str]
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    add_to: Path | None
    model: str | None
    options: Mapping[str, Any]
    head: str | None
    seed: int | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Path | None
    out: Path


def run_multitask(request: MultitaskRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Train tasks together, or add tasks to trained ones; return the document of `cuecraft multitask --json`.

    Raises:
        CuecraftError: anything that the user can mend; nothing is written then.
    """
    begun = time.perf_counter()
    check_family_target(request.out)
    if request.add_to is not None and (request.options or request.head or request.seed is not None):
        raise MethodError("--option, --head and --seed are the family's own; leave them out beside --add-to")
    sources = {"train": request.tasks, "dev": request.dev, "test": request.test}
    columns = (request.text_columns, request.label_column)
    read = {part: {name: read_records(path, *columns) for name, path in own.items()} for part, own in sources.items()}
    for part in ("dev", "test"):
        for name, records in read[part].items():
            if name not in read["train"]:
                raise DataError(f"--{part} names task {name!r}, but the tasks are {', '.join(read['train'])}")
            check_labels(request.tasks[name], read["train"][name], {sources[part][name]: records})
    where = {"device": request.device, "dtype": request.dtype, "local_files_only": request.local_files_only}
    texts = {part: {name: _unzip(records) for name, records in own.items()} for part, own in read.items()}
    if request.add_to is None:
        options = make_options(MultitaskTuning, request.options)
        model, seed = request.model or "demo:smollm2-135m", request.seed or 0
        family = PromptFamily(model, options, seed=seed, head=request.head, **where)  # type: ignore[arg-type]
        family.fit(texts["train"], texts["dev"], report=started("multitask"), checkpoints=request.checkpoints)
    else:
        family = PromptFamily.load(request.add_to, request.model, **where)  # type: ignore[arg-type]
        for name, (train, labels) in texts["train"].items():
            dev, listener = texts["dev"].get(name), started(f"adding {name}")
            family.add(name, train, labels, dev, report=listener, checkpoints=request.checkpoints)
    for name, records in read["test"].items():
        test = subsample(records, request.test_size, family.seed)
        accuracy = float(family.classifier(name).score(*_unzip(test)))
        family.artifacts[name] = family.artifacts[name].with_test({"test_accuracy": accuracy}, data_entry(test))
    rows = {name: dict(family.artifacts[name].manifest.metrics) for name in texts["train"]}
    family.save(request.out)
    return {"family": str(request.out), "tasks": rows, "seconds": round(time.perf_counter() - begun, 2)}


def run_mix(
    sources: Sequence[Path], weights: Sequence[float], combination: str, where: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Mix LoRA artifacts and write the mix; return the document of `cuecraft mix --json`.

    Args:
        sources: artifact folders.
        weights: one for each.
        combination: how PEFT mixes adapters.
        where: `model` (None for the name that they were tuned under), `device`, `dtype`, `local_files_only`.
        out: the mix's folder.
    """
    check_target(out)
    if combination not in get_args(Combination):
        raise MethodError(f"combination {combination!r} is unknown; choose {', '.join(get_args(Combination))}")
    artifacts = [load_artifact(source) for source in sources]
    made_for = artifacts[0].manifest.backbone
    settings = {name: value for name, value in where.items() if name != "model"}
    backbone = load_backbone(where["model"] or made_for.name, made_for.head, **settings)
    mixed = mix_lora(artifacts, weights, backbone, combination)  # type: ignore[arg-type]
    sha256 = mixed.save(out)
    assert mixed.weights is not None
    return {"artifact": str(out), "artifact_sha256": sha256, "weights": mixed.weights.spec.model_dump(mode="json")}


def read_texts(artifact: Path, lines: Sequence[str], file: Path | None, columns: Sequence[str] | None) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file.

    Raises:
        DataError: no texts, or lines for a template of several fields.
    """
    fields = load_artifact(artifact).task.template.field_names
    if file is not None and file.suffix != ".txt":
        return read_records(file, columns or fields, label_column=None)
    if file is not None:
        lines = list(stream_texts(file))
    if len(fields) > 1:
        raise DataError(f"the prompt takes the fields {', '.join(fields)}; give them as columns of a --file")
    if not lines:
        raise DataError("no text to classify; give texts as arguments, on stdin or in a --file")
    return [Record({fields[0]: line}) for line in lines]


def predict_records(
    artifact: Path,
    records: Sequence[Record],
    model: str | None,
    device: str,
    local_files_only: bool,
    dtype: str,
    report: Callable[[Event], None],
) -> dict[str, Any]:
    """Return the document of `cuecraft predict --json`."""
    classifier = PromptClassifier.load(artifact, model, device, local_files_only, dtype)
    names = [str(name) for name in classifier.classes_.tolist()]
    predictions = []
    found = classifier.predict_proba([dict(record.fields) for record in records], report)
    for record, row in zip(records, found, strict=True):
        shares: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
        label = max(shares, key=lambda name: shares[name])
        text = next(iter(record.fields.values()))
        predictions.append({"text": text, "label": label, "probabilities": shares})
    return {"artifact": str(artifact), "predictions": predictions}
