"""Runs: what the commands and recipes do, files in, artifacts and JSON-ready documents out. Nothing is printed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.runs.made import artifact_of
    from cuecraft.runs.multitask import run_addition, run_mix, run_multitask
    from cuecraft.runs.predicting import predict_records, read_texts
    from cuecraft.runs.reading import check_recipe, copy_recipe, load_recipe, recipe_path, shipped_names
    from cuecraft.runs.record import RunFolder, find_runs
    from cuecraft.runs.session import run_recipe
    from cuecraft.runs.spec import MultitaskSpec, Recipe, RunFiles, RunSpec, WordsSpec, json_schema
    from cuecraft.runs.tune import run_tune, run_words
    from cuecraft.runs.verifying import compare_runs, differences, verify

__all__ = [
    "MultitaskSpec",
    "Recipe",
    "RunFiles",
    "RunFolder",
    "RunSpec",
    "WordsSpec",
    "artifact_of",
    "check_recipe",
    "compare_runs",
    "copy_recipe",
    "differences",
    "find_runs",
    "json_schema",
    "load_recipe",
    "predict_records",
    "read_texts",
    "recipe_path",
    "run_addition",
    "run_mix",
    "run_multitask",
    "run_recipe",
    "run_tune",
    "run_words",
    "shipped_names",
    "verify",
]

# Loaded on first use: an exported folder answers without PyTorch.
_HOMES = {
    "multitask": (
        "run_addition",
        "run_mix",
        "run_multitask",
    ),
    "predicting": (
        "predict_records",
        "read_texts",
    ),
    "made": ("artifact_of",),
    "reading": (
        "check_recipe",
        "copy_recipe",
        "load_recipe",
        "recipe_path",
        "shipped_names",
    ),
    "record": (
        "RunFolder",
        "find_runs",
    ),
    "session": ("run_recipe",),
    "spec": (
        "MultitaskSpec",
        "Recipe",
        "RunFiles",
        "RunSpec",
        "WordsSpec",
        "json_schema",
    ),
    "tune": (
        "run_tune",
        "run_words",
    ),
    "verifying": (
        "compare_runs",
        "differences",
        "verify",
    ),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
