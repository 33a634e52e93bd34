"""Recipes: a run as one small file that can be repeated, resumed and verified."""

from cuecraft.recipe.checking import check_recipe
from cuecraft.recipe.reading import load_recipe
from cuecraft.recipe.record import RunFolder, artifact_of, find_runs
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
