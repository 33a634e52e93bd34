"""From a YAML file, overrides and declared environment variables to a checked recipe, and back; the recipes that ship.

`cuecraft recipe check` finds here all errors of a recipe that can be found without running it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cuecraft.core.assets import PREFIX, is_asset, is_known, model_folder
from cuecraft.core.errors import RecipeError
from cuecraft.core.storage import write_text
from cuecraft.core.yaml_files import Place, Settings, explained, flattened, keys_of, parse_yaml, read_yaml, shown_place
from cuecraft.runs.jobs import job_of
from cuecraft.runs.spec import JOBS, KINDS, Expectation, MultitaskRecipe, Recipe
from cuecraft.study.compare.config import MethodEntry
from cuecraft.task import Template

_VARIABLE = re.compile(r"(\$?)\$\{([^}]*)\}")  # `$${NAME}` stands for `${NAME}` itself
_JOB = "job"
_FOLDER = Path(__file__).parent / "shipped"
_ENDING = ".yaml"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: of the form `tune.learning_rate=0.003`, in place of what the file says. With any, what the file
            expects does not count, unless one of them is about that.

    Raises:
        RecipeError: the file cannot be read, a key or value is wrong, or a variable is not declared or not set.
    """
    recipe = check_settings(_overridden(read_yaml(path, RecipeError), overrides))
    is_another = bool(overrides) and not any(override.startswith("expect.") for override in overrides)
    if recipe.expect is not None and is_another:  # its figures are of the recipe as it is written
        return recipe.model_copy(update={"expect": Expectation(tolerance=recipe.expect.tolerance)})
    return recipe


def _overridden(settings: Settings, overrides: Sequence[str]) -> Settings:
    for override in overrides:
        key, equals, value = override.partition("=")
        place = key.split(".")
        if not equals or not all(place):
            raise RecipeError(f"{override!r} is not KEY=VALUE; write for instance tune.learning_rate=0.003")
        try:
            settings = settings.overridden(place, _override_value(value), f"override {override}")
        except KeyError as error:
            raise RecipeError(f"override {override}: {error.args[0]} has a value and no keys in it") from None
    return settings


def _override_value(text: str) -> Any:
    """Return what an override says: YAML, so that numbers, lists and null are what they are in a file; else the text.

    A template, such as `{text}{mask}`, is no YAML; and what stands behind ` #` belongs to a text that is not quoted.
    """
    try:
        found = parse_yaml(f"value: {text}", "", RecipeError).values["value"]
    except RecipeError:
        return text
    if found is None and not text:
        return ""
    return text if isinstance(found, str) and text[:1] not in ("'", '"') else found


def check_settings(settings: Settings) -> Recipe:
    """Return the recipe that settings describe, variables put in.

    Raises:
        RecipeError: a key or value is wrong, or a variable is not declared or not set.
    """
    values = settings.values
    job = values.get(_JOB, "tune")
    if not isinstance(job, str) or job not in JOBS:
        raise RecipeError(f"{settings.where((_JOB,))}job: {job!r} is unknown; choose {', '.join(JOBS)}")
    declared = _declared(settings)
    filled = {
        name: value if name == "env" else _filled(value, (name,), settings, declared) for name, value in values.items()
    }
    try:
        return JOBS[job].model_validate(filled)  # type: ignore[return-value]
    except ValidationError as error:
        raise RecipeError(_explained(error, settings, filled, job)) from None


def _explained(error: ValidationError, settings: Settings, filled: Mapping[str, Any], job: str) -> str:
    """Return the one line that states the first error of a recipe."""
    if any(found["type"] in ("union_tag_invalid", "union_tag_not_found") for found in error.errors()):
        where = settings.where(("tune", "method"))
        given = filled["tune"].get("method")
        problem = "is missing; give it" if given is None else f"{given!r} is unknown"
        return f"{where}tune.method: {problem}; choose {', '.join(KINDS)}"
    return explained(error, settings, lambda loc: _plain(loc, filled), lambda place: _known(place, job, filled))


def _plain(loc: Place, filled: Mapping[str, Any]) -> Place:
    """Return a place without the names of the shapes that pydantic tried there."""
    found: list[str | int] = []
    inner: Any = filled
    for part in loc:
        is_there = (isinstance(inner, Mapping) and part in inner) or (isinstance(inner, list) and isinstance(part, int))
        if is_there:
            found.append(part)
            inner = inner[part]
        elif isinstance(inner, Mapping) and part == loc[-1] and part not in KINDS:
            found.append(part)  # a key that is missing
    return tuple(found)


def _known(place: Place, job: str, filled: Mapping[str, Any]) -> Sequence[str]:
    """Return the keys that may stand at a place."""
    kind: type[BaseModel] = JOBS[job]
    for part in place:
        if kind in JOBS.values() and part == "tune":
            kind = KINDS[filled["tune"]["method"]]
            continue
        option = kind.model_fields.get(str(part))
        inner = option.annotation if option else None
        if part == "methods":
            return keys_of(MethodEntry)
        if isinstance(part, int) or inner is None:
            continue
        shapes = [inner, *getattr(inner, "__args__", ())]
        kind = next((s for s in reversed(shapes) if isinstance(s, type) and issubclass(s, BaseModel)), kind)
    return keys_of(kind)


def _declared(settings: Settings) -> dict[str, str | None]:
    """Return the declared environment variables and what they are now."""
    found = settings.values.get("env") or {}
    if not isinstance(found, Mapping):
        raise RecipeError(f"{settings.where(('env',))}env: write NAME: what it is where it is not set, or NAME: null")
    return {name: os.environ.get(name, default) for name, default in found.items()}


def _filled(value: Any, place: Place, settings: Settings, declared: Mapping[str, Any]) -> Any:
    """Return a value with variables put in."""
    if isinstance(value, Mapping):
        return {name: _filled(inner, (*place, name), settings, declared) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, (*place, number), settings, declared) for number, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        escape, name = match.groups()
        if escape:
            return f"${{{name}}}"
        where = f"{settings.where(place)}{shown_place(place)}"
        if name not in declared:
            raise RecipeError(
                f"{where}: ${{{name}}} is not declared; add 'env: {{{name}: null}}', or write $${{{name}}}"
            )
        if declared[name] is None:
            raise RecipeError(f"{where}: the environment variable {name} is not set; set it, or give it under env")
        return str(declared[name])

    return _VARIABLE.sub(put, value)


def to_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML that gives the same recipe: variables put in, every key with its value."""
    import yaml

    document = recipe.model_dump(mode="json")
    document["env"] = {}
    _forget_hashes(document)
    found = _escaped(document)
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)
    # Some characters, such as U+0085, do not survive unless they are written as escapes.
    return text if yaml.safe_load(text) == found else yaml.safe_dump(found, sort_keys=False, width=100)


def _forget_hashes(document: dict[str, Any]) -> None:
    """Leave out the hash of a corpus: the run keeps it with those of its data, and a recipe that has it is refused."""
    for value in document.values():
        if isinstance(value, dict):
            _forget_hashes(value)
    if "corpus_sha256" in document:
        document["corpus_sha256"] = None


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return _VARIABLE.sub(lambda found: f"${found[0]}", value) if isinstance(value, str) else value


def shown_keys(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's values by dotted key, for comparing two."""
    return flattened(recipe.model_dump(mode="json", exclude={"env"}))


def shipped_names() -> list[str]:
    """Return the names of all shipped recipes."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{_ENDING}"))


def recipe_path(named: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one.

    Raises:
        RecipeError: neither.
    """
    path = Path(named)
    if path.suffix in (_ENDING, ".yml") or path.is_file():
        return path
    if named in shipped_names():
        return _FOLDER / f"{named}{_ENDING}"
    raise RecipeError(f"{named}: no file, and no shipped recipe; there are {', '.join(shipped_names())}")


def copy_recipe(named: str, target: Path) -> Path:
    """Copy a recipe to a file, or into a folder; return where it is.

    Raises:
        RecipeError: there is no such recipe, or the target exists or cannot be written.
    """
    source, text = recipe_path(named), read_recipe(named)
    path = target / source.name if target.is_dir() else target
    if path.exists():
        raise RecipeError(f"{path}: exists; name another file, or remove it")
    try:
        write_text(path, text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written ({error.strerror or error}); name another place") from error
    return path


def read_recipe(named: str) -> str:
    """Return the text of a recipe's file.

    Raises:
        RecipeError: there is none.
    """
    path = recipe_path(named)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); check the path") from error


def described(named: str) -> dict[str, str]:
    """Return what a shipped recipe's file says of itself; variables need not be set."""
    values = parse_yaml(read_recipe(named), named, RecipeError).values
    data = {"CUECRAFT_DATA": "benchmark data", "GUARD_DATA": "cuecraft guard data"}
    needs = [data[name] for name in values.get("env") or {} if name in data]
    model = (values.get("model") or {}).get("name", PREFIX)
    needs += [] if is_asset(model) else ["the Hub"]
    return {
        "job": str(values.get("job", "tune")),
        "description": str(values["description"]),
        "needs": ", ".join(needs),
    }


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
