"""Recipes: a run as one small file that can be repeated, resumed and verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.recipe.checking import check_recipe
    from cuecraft.recipe.made import artifact_of
    from cuecraft.recipe.reading import load_recipe
    from cuecraft.recipe.record import RunFolder, find_runs
    from cuecraft.recipe.running import run_recipe
    from cuecraft.recipe.schema import Recipe, json_schema
    from cuecraft.recipe.shipped import copy_recipe, recipe_path, shipped_names
    from cuecraft.recipe.verifying import compare_runs, differences, verify

__all__ = [
    "Recipe",
    "RunFolder",
    "artifact_of",
    "check_recipe",
    "compare_runs",
    "copy_recipe",
    "differences",
    "find_runs",
    "json_schema",
    "load_recipe",
    "recipe_path",
    "run_recipe",
    "shipped_names",
    "verify",
]

# Loaded on first use: commands that answer ask only where a run's artifact lies.
_HOMES = {
    "checking": ("check_recipe",),
    "made": ("artifact_of",),
    "reading": ("load_recipe",),
    "record": ("RunFolder", "find_runs"),
    "running": ("run_recipe",),
    "schema": ("Recipe", "json_schema"),
    "shipped": ("copy_recipe", "recipe_path", "shipped_names"),
    "verifying": ("compare_runs", "differences", "verify"),
}

__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
