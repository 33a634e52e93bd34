"""What `tune --seeds` does: the same run with several seeds, and how much the result depends on the seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.errors import ArtifactError, DataError
from cuecraft.events import Event
from cuecraft.manifests import MANIFEST
from cuecraft.predictor import PromptEnsemble
from cuecraft.prompts import check_target, member_folders
from cuecraft.runs.examples import read_test, unzip
from cuecraft.runs.requests import TuneRequest
from cuecraft.runs.tuning import tune_once

_SPREAD = ("dev_accuracy", "held_out_accuracy", "test_accuracy", "test_macro_f1")


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
        raise DataError("--seeds needs two seeds at least, such as 0,1,2; for one, give --seed")
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
        raise ArtifactError(f"{out}: is an artifact; give --seeds another --out")
    others = [path.name for path in member_folders(out) if path not in folders]
    if others:
        raise ArtifactError(
            f"{out}: has artifacts of other seeds ({', '.join(others)}); remove them, or give another --out"
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
