"""What the commands `tune` and `predict` do: files in, artifacts and JSON-ready documents out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuecraft.classifier import PromptClassifier
from cuecraft.data import Record, k_shot_split, read_records, subsample
from cuecraft.errors import DataError
from cuecraft.method import Event
from cuecraft.prompts import check_target, load_artifact
from cuecraft.tune.prepare import data_entry


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
    template: str | None
    label_words: Mapping[str, Sequence[str]] | None
    shots: int | None
    head: str | None
    max_tokens: int | None
    seed: int
    time_limit: float | None
    device: str
    dtype: str
    local_files_only: bool
    out: Path


def run_tune(request: TuneRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Tune, test and write the artifact; return the document of `cuecraft tune --json`.

    Raises:
        CuecraftError: anything that the user can mend; nothing is written then.
    """
    begun = time.perf_counter()
    check_target(request.out)
    train, dev, test = _splits(request)
    _check_labels(request, train, dev=dev or [], test=test)
    classifier = PromptClassifier(
        request.model,
        request.method,
        template=request.template,
        label_words=request.label_words,
        method_options=request.method_options,
        max_tokens=request.max_tokens,
        time_limit=request.time_limit,
        seed=request.seed,
        head=request.head,
        device=request.device,
        local_files_only=request.local_files_only,
        dtype=request.dtype,
    )
    listener = started(request.method)
    classifier.fit(*_unzip(train), dev=_unzip(dev) if dev else None, report=listener)
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
    names = ("test_accuracy", "untuned_test_accuracy", "calibrated_untuned_test_accuracy")
    return {
        "method": request.method,
        "artifact": str(request.out),
        "artifact_sha256": sha256,
        "seconds": round(time.perf_counter() - begun, 2),
        "metrics": metrics | {name: tested.get(name) for name in names},
        "tuned": classifier.outcome_.is_tuned,
        "prompt": classifier.artifact_.manifest.prompt.text,
        "words": classifier.artifact_.manifest.words,
        "template": classifier.task_.template.source,
        "test_rows": len(test),
        "padding": round(classifier.padding_, 4),
    }


def _splits(request: TuneRequest) -> tuple[list[Record], list[Record] | None, list[Record]]:
    """Return train, dev and test records as asked for."""

    def read(source: str) -> list[Record]:
        return read_records(source, request.text_columns, request.label_column)

    train, rest = read(request.train), []
    dev = read(request.dev) if request.dev else None
    if request.shots:
        split = k_shot_split(train, request.shots, request.seed, with_dev=dev is None)
        train, rest = split.train, split.rest
        dev = split.dev if dev is None else dev
    if request.test:
        return train, dev, subsample(read(request.test), request.test_size, request.seed)
    if request.test_size is None:
        return train, dev, []
    if not request.shots:
        raise DataError("--test-size needs --test, or --shots so that rows of TRAIN are left over to test on")
    if not rest:
        raise DataError(
            f"--shots {request.shots} leaves no rows of {request.train} to test on; lower it or give --test"
        )
    return train, dev, subsample(rest, request.test_size, request.seed)


def _check_labels(request: TuneRequest, train: Sequence[Record], **others: Sequence[Record]) -> None:
    """Raise DataError, before anything long is done, where dev or test have a class that train has not."""
    known = {record.label for record in train}
    for name, records in others.items():
        for row, record in enumerate(records, start=1):
            if record.label not in known:
                source = getattr(request, name) or request.train
                raise DataError(
                    f"{source} row {row}: label {record.label!r} is not one of the training classes "
                    f"({', '.join(sorted(map(str, known)))}); mend the label or add the class to {request.train}"
                )


def _unzip(records: Sequence[Record]) -> tuple[list[dict[str, str]], list[str | None]]:
    return [dict(record.fields) for record in records], [record.label for record in records]


def read_texts(artifact: Path, lines: Sequence[str], file: Path | None, columns: Sequence[str] | None) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file.

    Raises:
        DataError: no texts, or lines for a template of several fields.
    """
    fields = load_artifact(artifact).task.template.field_names
    if file is not None and file.suffix != ".txt":
        return read_records(file, columns or fields, label_column=None)
    if file is not None:
        if not file.is_file():
            raise DataError(f"{file}: no such file; check the path")
        try:
            lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(f"{file}: not readable as UTF-8 text ({error})") from error
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
