"""What `guard check`, `guard eval` and `guard data` do: a guard is set up, asked, measured; texts are written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuecraft.core.errors import DataError, GuardError, named
from cuecraft.core.storage import write_text
from cuecraft.data import Record, read_records, stream_texts
from cuecraft.serving.guard import (
    Detector,
    Guard,
    HubDetector,
    Kind,
    PromptDetector,
    Screening,
    Verdict,
    all_rules,
    attack_classes,
    only_field,
)
from cuecraft.serving.guard.texts import CORPUS, GuardText, TextRole, corpus_texts, own_texts
from cuecraft.study.compare.statistics import wilson_interval


@dataclass(frozen=True)
class GuardRequest:
    """What a guard is made of; see the help of `cuecraft guard check` for each."""

    rules: Sequence[Path]
    detectors: Sequence[str]
    artifact: Path | None
    attack: Sequence[str]
    threshold: float
    backbone: Mapping[str, Any]


def make_guard(request: GuardRequest) -> Guard:
    """Set a guard up.

    Raises:
        GuardError: a rule file, a detector or the threshold cannot be used.
        CuecraftError: the artifact or its backbone cannot be used.
    """
    detectors: list[Detector] = []
    if request.artifact is not None:
        detectors.append(prompt_detector(request.artifact, request.attack, **request.backbone))
    options = {name: request.backbone[name] for name in ("device", "local_files_only")}
    detectors += [HubDetector(name, request.attack, **options) for name in request.detectors]
    return Guard(all_rules(request.rules), detectors=detectors, threshold=request.threshold)


def prompt_detector(
    folder: Path, attack: Sequence[str], model: str | None, device: str, dtype: str, local_files_only: bool
) -> PromptDetector:
    """Load a tuned prompt, or several over one backbone, as a detector.

    Args:
        folder: the artifact, or that of an ensemble.
        attack: classes that mean an attack; none to find them by their names.
        model: where the backbone is now; None for the name it was tuned under.
        device: a torch device, or ``auto``.
        dtype: of the model's weights, or ``auto``.
        local_files_only: never ask the Hub for a model.

    Raises:
        GuardError: the prompt takes several fields, or which classes mean an attack is not clear.
        CuecraftError: the artifact or its backbone cannot be used.
    """
    from cuecraft.artifact import load_artifact, member_folders
    from cuecraft.artifact.predictor import Predictor

    task = load_artifact(next(iter(member_folders(folder)), folder)).task
    field = only_field(task.template.field_names, str(folder))
    classifier = Predictor.load(folder, model, device, local_files_only, dtype)
    classes = [str(name) for name in classifier.classes_.tolist()]

    def answers(texts: Sequence[str]) -> Any:
        return classifier.predict_proba([{field: text} for text in texts])

    return PromptDetector(str(folder), answers, classes, attack)


def guard_texts(lines: Sequence[str], file: Path | None, column: str) -> list[str]:
    """Return the texts to screen, given as lines or in a file.

    Raises:
        DataError: there are none, or the file cannot be read.
    """
    texts = list(lines) if file is None else list(stream_texts(file, column))
    if not texts:
        raise DataError(f"no text to screen; give texts as arguments, on stdin or in a {named('file')}")
    return texts


def run_guard_check(guard: Guard, texts: Sequence[str]) -> dict[str, Any]:
    """Screen texts; return the document of `cuecraft guard check --json`."""
    screened = guard.screen_many(texts)
    rows = [{"text": text, **found.document()} for text, found in zip(texts, screened, strict=True)]
    return {"flagged": sum(found.verdict is Verdict.FLAG for found in screened), "screened": len(rows), "texts": rows}


def run_guard_eval(
    request: GuardRequest, file: str, text_column: str, label_column: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Measure a guard on labelled texts; return the document of `cuecraft guard eval --json`.

    Args:
        request: what the guard is made of.
        file: labelled texts.
        text_column: of texts.
        label_column: of labels.
        labels: those that mean an attack, whether or not the file has them; none to find them by their names.

    Raises:
        GuardError: as `make_guard`, or which labels mean an attack is not clear.
        DataError: the file cannot be used.
    """
    records = read_records(file, (text_column,), label_column)
    known = sorted({str(record.label) for record in records})
    attack = tuple(labels) or attack_classes(known, source=file)
    guard = make_guard(request)
    screened = guard.screen_many([record.fields[text_column] for record in records])
    truth = [record.label in attack for record in records]
    return {
        "file": file,
        "attack_labels": list(attack),
        "rows": len(records),
        "threshold": guard.threshold,
        "rates": [{"name": name, **_rates(truth, said)} for name, said in _columns(guard, screened)],
        "wrong": list(_wrong(records, truth, screened, text_column)),
    }


def _columns(guard: Guard, screened: Sequence[Screening]) -> Iterator[tuple[str, list[bool]]]:
    """Yield what each part of a guard says of the texts: rules (and limits) alone, each detector, all together."""
    plain = [
        any(finding.flags and finding.kind is not Kind.DETECTOR for finding in found.findings) for found in screened
    ]
    yield "rules", plain
    for detector in guard.detectors:
        yield detector.name, [found.scores[detector.name] >= guard.threshold for found in screened]
    if guard.detectors:
        yield "together", [found.verdict is Verdict.FLAG for found in screened]


def _rates(truth: Sequence[bool], said: Sequence[bool]) -> dict[str, Any]:
    """Return precision, recall and false-positive rate, each with its 95% Wilson interval; None of no texts."""
    counts = Counter(zip(truth, said, strict=True))
    hits, misses = counts[True, True], counts[True, False]
    alarms, quiet = counts[False, True], counts[False, False]
    return {
        "counts": {"hits": hits, "misses": misses, "false_alarms": alarms, "passed": quiet},
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, hits + misses),
        "false_positive_rate": _share(alarms, alarms + quiet),
    }


def _share(part: int, whole: int) -> dict[str, Any] | None:
    if not whole:
        return None
    return {"value": part / whole, "interval_95": list(wilson_interval(part / whole, whole)), "rows": whole}


def _wrong(
    records: Sequence[Record], truth: Sequence[bool], screened: Sequence[Screening], column: str
) -> Iterator[dict[str, Any]]:
    for record, is_attack, found in zip(records, truth, screened, strict=True):
        if is_attack != (found.verdict is Verdict.FLAG):
            yield {"text": record.fields[column], "label": record.label, **found.document()}


def write_guard_data(out: Path) -> dict[str, Any]:
    """Write labelled texts as ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``; return what was written.

    Ours, and those of `bastioncorpus` where it is installed; a text is in the part that its hash says.

    Raises:
        GuardError: the folder cannot be written.
    """
    corpus = corpus_texts()
    texts = {text.text: text for text in [*corpus, *own_texts()]}.values()
    parts = {part: [text for text in texts if text.part is part] for part in TextRole}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            write_text(out / f"{part}.jsonl", "".join(_line(row) for row in rows))
    except OSError as error:
        raise GuardError(f"{out}: cannot be written ({error.strerror or error}); name another folder") from error
    counts = {part.value: dict(Counter(row.label for row in rows)) for part, rows in parts.items()}
    return {"folder": str(out), "parts": counts, CORPUS: len(corpus)}


def _line(text: GuardText) -> str:
    row = {"text": text.text, "label": text.label, "kind": text.kind, "source": text.source}
    return json.dumps(row, ensure_ascii=False) + "\n"
