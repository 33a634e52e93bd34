"""What `predict` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuecraft.core.errors import ExportError, named
from cuecraft.data import Record
from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.data.texts import unlabelled
from cuecraft.export.runtime import ExportedClassifier, RuntimeOptions, is_export
from cuecraft.export.runtime.manifest import EXPORT
from cuecraft.export.runtime.model import check_where
from cuecraft.task.answers import AnswerColumns, AnswerSpace, Decision, decision_document

if TYPE_CHECKING:
    from cuecraft.artifact.predictor import Predictor
    from cuecraft.core.events import Event


def read_texts(
    artifact: Path,
    lines: Sequence[str],
    file: Path | None,
    columns: Sequence[str] | None,
    reading: Reading = AS_USUAL,
    answers: AnswerColumns | None = None,
) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file, for an artifact or an exported folder.

    `answers` says where rows have options of their own; None for the usual column.

    Raises:
        DataError: no texts, or lines for a template of several fields, or where each text brings options.
    """
    if is_export(artifact):
        task = EXPORT.read(artifact).prompts[0].task.task()  # all of them have the same fields
    else:
        from cuecraft.artifact import load_artifact, member_folders

        task = load_artifact(next(iter(member_folders(artifact)), artifact)).task
    own = None if task.answers.size or task.answers.is_open else task.answers.in_rows(answers)
    return unlabelled(task.template.field_names, lines, file, columns, reading, own)


def predict_records(
    artifact: Path,
    records: Sequence[Record],
    prompt: str | None,
    where: Mapping[str, Any],
    report: Callable[[Event], None],
    most: int | None = None,
) -> dict[str, Any]:
    """Return the document of `cuecraft predict --json`; a folder of several seeds answers as an ensemble.

    Of an exported folder with several prompts, `prompt` says which answers. `where` has `model` (None for the name that
    the backbone was tuned under), `device`, `dtype` and `local_files_only`. Of
    more than `most` options that all texts share, each text has those that are answered and the `most` likeliest alone.
    """
    classifier = _classifier(artifact, prompt, where)
    examples = classifier.task.examples(records)
    decisions, cut = classifier.decide(examples, report), classifier.cuts(examples)
    answers = classifier.task.answers
    predictions = [
        {
            "text": next(iter(record.fields.values())),
            **decision_document(answers, decision if most is None else listed(answers, decision, most)),
            "truncated": is_cut,
        }
        for record, decision, is_cut in zip(records, decisions, cut, strict=True)
    ]
    return {"artifact": str(artifact), "answers": answers.kind, "predictions": predictions}


def listed(answers: AnswerSpace, decision: Decision, most: int) -> Decision:
    """Return a decision with the options that are answered and the `most` likeliest, the likeliest first.

    Up to so many, and options that a text brings, whose places are answers, stay as they are.
    """
    if answers.size <= most:
        return decision
    value = decision.value
    answered = {str(own) for own in (value if isinstance(value, list) else [value])}
    order = sorted(decision.options.items(), key=lambda pair: -pair[1])
    kept = {name: share for place, (name, share) in enumerate(order) if place < most or name in answered}
    return replace(decision, options=kept)


def _classifier(folder: Path, prompt: str | None, where: Mapping[str, Any]) -> ExportedClassifier | Predictor:
    """Return what answers; an exported folder needs no PyTorch, so nothing of it is imported then."""
    if is_export(folder):
        check_where(folder, where["model"], where["dtype"])
        return ExportedClassifier.load(folder, RuntimeOptions(device=where["device"]), prompt)
    if prompt is not None:
        raise ExportError(f"{folder}: is no export of several prompts; leave {named('prompt')} out")
    from cuecraft.artifact.predictor import Predictor

    return Predictor.load(folder, **where)
