"""What `multitask` and `mix` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cuecraft.api.family import PromptFamily, check_family_target
from cuecraft.artifact import check_target, load_artifact
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import DataError, MethodError, named
from cuecraft.core.events import Event
from cuecraft.core.options import make_options
from cuecraft.data import Record, read_records, subsample
from cuecraft.methods.prepare import data_entry
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.methods.train.weights import Combination, mix_lora
from cuecraft.runs.spec import MultitaskRequest
from cuecraft.runs.tune import check_labels, unzip


def run_multitask(request: MultitaskRequest, started: Callable[[str], Callable[[Event], None]]) -> dict[str, Any]:
    """Train tasks together, or add tasks to trained ones; return the document of `cuecraft multitask --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    begun = time.perf_counter()
    check_family_target(request.out)
    if request.add_to is not None and (request.options or request.head or request.seed is not None):
        raise MethodError(
            f"{named('option')}, {named('model.head')} and {named('seed')} are the family's own; leave them out "
            f"with {named('add_to')}"
        )
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
