"""What `predict` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuecraft.classifier import PromptClassifier
from cuecraft.data import Record, read_records, stream_texts
from cuecraft.ensemble import PromptEnsemble
from cuecraft.errors import DataError
from cuecraft.method import Event
from cuecraft.prompts import load_artifact, member_folders


def read_texts(artifact: Path, lines: Sequence[str], file: Path | None, columns: Sequence[str] | None) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file.

    Raises:
        DataError: no texts, or lines for a template of several fields.
    """
    fields = load_artifact(next(iter(member_folders(artifact)), artifact)).task.template.field_names
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
    """Return the document of `cuecraft predict --json`; a folder of several seeds answers as an ensemble."""
    kind = PromptEnsemble if member_folders(artifact) else PromptClassifier
    classifier = kind.load(artifact, model, device, local_files_only, dtype)
    names = [str(name) for name in classifier.classes_.tolist()]
    predictions = []
    found = classifier.predict_proba([dict(record.fields) for record in records], report)
    for record, row in zip(records, found, strict=True):
        shares: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
        label = max(shares, key=lambda name: shares[name])
        text = next(iter(record.fields.values()))
        predictions.append({"text": text, "label": label, "probabilities": shares})
    return {"artifact": str(artifact), "predictions": predictions}
