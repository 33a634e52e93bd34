"""What `multitask`, `mix` and `predict` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cuecraft.api.family import PromptFamily, check_family_target
from cuecraft.artifact import check_target, load_artifact
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import DataError, ExportError, MethodError
from cuecraft.core.events import Event
from cuecraft.core.options import make_options
from cuecraft.data import Record, read_records, subsample
from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.data.texts import unlabelled
from cuecraft.export.runtime import ExportedClassifier, RuntimeOptions, is_export
from cuecraft.export.runtime.manifest import EXPORT
from cuecraft.export.runtime.model import check_where
from cuecraft.methods.prepare import data_entry
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.methods.train.weights import Combination, mix_lora
from cuecraft.runs.spec import MultitaskRequest
from cuecraft.runs.tune import check_labels, unzip

if TYPE_CHECKING:
    from cuecraft.artifact.predictor import PromptEnsemble, TunedPrompt


def run_multitask(request: MultitaskRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Train tasks together, or add tasks to trained ones; return the document of `cuecraft multitask --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    begun = time.perf_counter()
    check_family_target(request.out)
    if request.add_to is not None and (request.options or request.head or request.seed is not None):
        raise MethodError("--option, --head and --seed are the family's own; leave them out with --add-to")
    read = read_tasks(request)
    where = {"device": request.device, "dtype": request.dtype, "local_files_only": request.local_files_only}
    texts = {part: {name: unzip(records) for name, records in own.items()} for part, own in read.items()}
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
        accuracy = float(family.classifier(name).score(*unzip(test)))
        family.artifacts[name] = family.artifacts[name].with_test({"test_accuracy": accuracy}, data_entry(test))
    rows = {name: dict(family.artifacts[name].manifest.metrics) for name in texts["train"]}
    family.save(request.out)
    return {"family": str(request.out), "tasks": rows, "seconds": round(time.perf_counter() - begun, 2)}


def read_tasks(request: MultitaskRequest) -> dict[str, dict[str, list[Record]]]:
    """Return the records of each task, by part (`train`, `dev`, `test`) and then by task.

    Raises:
        DataError: a file cannot be read, or does not go with the task's training file.
    """
    sources = {"train": request.tasks, "dev": request.dev, "test": request.test}
    columns = (request.text_columns, request.label_column)
    read = {part: {name: read_records(path, *columns) for name, path in own.items()} for part, own in sources.items()}
    for part in ("dev", "test"):
        for name, records in read[part].items():
            if name not in read["train"]:
                raise DataError(f"--{part} names task {name!r}, but the tasks are {', '.join(read['train'])}")
            check_labels(request.tasks[name], read["train"][name], {sources[part][name]: records})
    return read


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


def read_texts(
    artifact: Path,
    lines: Sequence[str],
    file: Path | None,
    columns: Sequence[str] | None,
    reading: Reading = AS_USUAL,
) -> list[Record]:
    """Return unlabelled records of texts given as lines or in a file, for an artifact or an exported folder.

    Raises:
        DataError: no texts, or lines for a template of several fields.
    """
    if is_export(artifact):
        task = EXPORT.read(artifact).prompts[0].task.task()  # all of them have the same fields
    else:
        from cuecraft.artifact import load_artifact, member_folders

        task = load_artifact(next(iter(member_folders(artifact)), artifact)).task
    return unlabelled(task.template.field_names, lines, file, columns, reading)


def predict_records(
    artifact: Path,
    records: Sequence[Record],
    prompt: str | None,
    model: str | None,
    device: str,
    local_files_only: bool,
    dtype: str,
    report: Callable[[Event], None],
) -> dict[str, Any]:
    """Return the document of `cuecraft predict --json`; a folder of several seeds answers as an ensemble.

    Of an exported folder with several prompts, `prompt` says which answers.
    """
    classifier = _classifier(artifact, prompt, model, device, local_files_only, dtype)
    names = [str(name) for name in classifier.classes_.tolist()]
    predictions = []
    texts = [dict(record.fields) for record in records]
    found, truncated = classifier.predict_proba(texts, report), classifier.truncated(texts).tolist()
    for record, row, is_cut in zip(records, found, truncated, strict=True):
        shares: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
        label = max(shares, key=lambda name: shares[name])
        text = next(iter(record.fields.values()))
        predictions.append({"text": text, "label": label, "probabilities": shares, "truncated": is_cut})
    return {"artifact": str(artifact), "predictions": predictions}


def _classifier(
    folder: Path, prompt: str | None, model: str | None, device: str, local_files_only: bool, dtype: str
) -> ExportedClassifier | TunedPrompt | PromptEnsemble:
    """Return what answers; an exported folder needs no PyTorch, so nothing of it is imported then."""
    if is_export(folder):
        check_where(folder, model, dtype)
        return ExportedClassifier.load(folder, RuntimeOptions(device=device), prompt)
    if prompt is not None:
        raise ExportError(f"{folder}: is no export of several prompts; leave --prompt out")
    from cuecraft.artifact import member_folders
    from cuecraft.artifact.predictor import PromptEnsemble, TunedPrompt

    kind = PromptEnsemble if member_folders(folder) else TunedPrompt
    return kind.load(folder, model, device, local_files_only, dtype)
