"""`cuecraft recipe check`: all errors of a recipe that can be found without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cuecraft.assets import is_known, model_folder
from cuecraft.errors import RecipeError
from cuecraft.recipe.jobs import job_of
from cuecraft.recipe.reading import load_recipe
from cuecraft.recipe.schema import MultitaskRecipe, Recipe
from cuecraft.recipe.shipped import recipe_path
from cuecraft.task import Template


def check_recipe(named: str, overrides: list[str], with_data: bool = True) -> dict[str, Any]:
    """Check keys, values, template, method, model and data; return the document of `cuecraft recipe check --json`.

    A model's folder or demo package is looked for; a name of the Hub is not looked up.

    Args:
        named: a file, or the name of a shipped recipe.
        overrides: in place of what the file says.
        with_data: read the data too.

    Raises:
        CuecraftError: something is wrong; the first of it.
    """
    recipe = load_recipe(recipe_path(named), overrides)
    if not isinstance(recipe, MultitaskRecipe) and recipe.task.template is not None:
        Template(recipe.task.template)
    model = _model(recipe)
    data = job_of(recipe, Path("runs", recipe.name)).data() if with_data else {}
    return {
        "recipe": recipe.name,
        "job": recipe.job,
        "model": model,
        "data": {name: entry.model_dump() for name, entry in data.items()},
    }


def _model(recipe: Recipe) -> str:
    """Return where the model is; raise an error where it has to be here and is not."""
    name = recipe.model.name
    if is_known(name):
        return f"{name}, {model_folder(name)}"
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or Path(name).exists():
        raise RecipeError(f"model.name: {name} is no folder of a model, and no GGUF file; check the path")
    return f"{name}, a name on the Hub, not looked up"
