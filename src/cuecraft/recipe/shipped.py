"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

from cuecraft.assets import PREFIX, is_asset
from cuecraft.errors import RecipeError
from cuecraft.settings import parse_yaml
from cuecraft.storage import write_text

_FOLDER = Path(__file__).parent / "shipped"
_ENDING = ".yaml"


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
