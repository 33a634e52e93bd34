"""What `multitask` and `mix` do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cuecraft.api.family import PromptFamily, check_family_target
from cuecraft.api.given import Given
from cuecraft.artifact import check_target, load_artifact
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import MethodError, named
from cuecraft.core.events import Started
from cuecraft.core.warned import errors_first
from cuecraft.data import Record, read_records, subsample
from cuecraft.data.readers import AS_USUAL
from cuecraft.methods.prepare import data_entry
from cuecraft.methods.train.weights import Combination, mix_lora
from cuecraft.runs.answers import checked_space, columns_of
from cuecraft.runs.spec import MultitaskSpec, RunFiles
from cuecraft.task.answers.asked import Asked


def run_multitask(spec: MultitaskSpec, files: RunFiles, started: Started) -> dict[str, Any]:
    """Train tasks together; return the document of `cuecraft multitask --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    begun = time.perf_counter()
    check_family_target(files.out)
    with errors_first(started) as heard:
        asked = asked_of_tasks(spec)
        read = read_tasks(spec, asked)
        model = spec.model
        family = PromptFamily(model.name, spec.multitask, seed=spec.seed, head=model.head, **model.where)
        given = {name: Given.read(records, asked[name]) for name, records in read["train"].items()}
        family.fit_given(given, read["dev"], report=heard("multitask"), checkpoints=files.checkpoints)
    return _tested(family, read, spec, files, begun)


def run_addition(spec: MultitaskSpec, family_folder: Path, files: RunFiles, started: Started) -> dict[str, Any]:
    """Add tasks to trained ones; document and errors as of `run_multitask`.

    Args:
        spec: the tasks; options, head and seed are the family's own, and so is the model unless it is named.
        family_folder: of the trained tasks.
        files: where the greater family goes.
        started: called with each part of the work, and returns the progress callback of its steps.
    """
    begun = time.perf_counter()
    check_family_target(files.out)
    if spec.model_fields_set & {"multitask", "seed"} or "head" in spec.model.model_fields_set:
        raise MethodError(
            f"{named('option')}, {named('model.head')} and {named('seed')} are the family's own; leave them out with "
            f"{named('add_to')}"
        )
    with errors_first(started) as heard:
        asked = asked_of_tasks(spec)
        read = read_tasks(spec, asked)
        name_now = spec.model.name if "name" in spec.model.model_fields_set else None
        family = PromptFamily.load(family_folder, name_now, **spec.model.where)
        for name, records in read["train"].items():
            given, dev = Given.read(records, asked[name]), read["dev"].get(name)
            family.add_given(name, given, dev, report=heard(f"adding {name}"), checkpoints=files.checkpoints)
    return _tested(family, read, spec, files, begun)


def _tested(
    family: PromptFamily,
    read: Mapping[str, Mapping[str, Sequence[Record]]],
    spec: MultitaskSpec,
    files: RunFiles,
    begun: float,
) -> dict[str, Any]:
    """Test the tasks, write the family and return the document."""
    for name, records in read["test"].items():
        test = subsample(records, spec.data.test_size, family.seed)
        primary = family.artifacts[name].task.answers.primary
        tested = {f"test_{primary}": family.classifier(name).measured(test)[primary]}
        family.artifacts[name] = family.artifacts[name].with_test(tested, data_entry(test))
    rows = {name: dict(family.artifacts[name].manifest.metrics) for name in spec.tasks}
    family.save(files.out)
    return {"family": str(files.out), "tasks": rows, "seconds": round(time.perf_counter() - begun, 2)}


def asked_of_tasks(spec: MultitaskSpec) -> dict[str, Asked]:
    """Return what is asked of the answers of each task; raises as `Asked.in_file`."""
    columns = columns_of(spec.data)
    return {name: Asked.in_file(own.train, own.answers, columns, AS_USUAL) for name, own in spec.tasks.items()}


def read_tasks(spec: MultitaskSpec, asked: Mapping[str, Asked]) -> dict[str, dict[str, list[Record]]]:
    """Return the records of each task, by part (`train`, `dev`, `test`) and then by task.

    Raises:
        DataError: a file cannot be read, or does not go with the task's training file.
    """
    read: dict[str, dict[str, list[Record]]] = {}
    for part in ("train", "dev", "test"):
        sources = {name: getattr(task, part) for name, task in spec.tasks.items()}
        read[part] = {
            name: read_records(path, spec.tasks[name].text_columns or spec.data.text_columns, asked[name].rows)
            for name, path in sources.items()
            if path is not None
        }
        for name, records in read[part].items():
            known = asked[name].known(read["train"][name], read.get("dev", {}).get(name))
            space = checked_space(asked[name], None, known)
            space.golds(records)
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
