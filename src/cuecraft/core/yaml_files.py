"""YAML files of settings, and errors in them with file, line and key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cuecraft.core.errors import CuecraftError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Settings:
    """What a file says, and where.

    Args:
        source: the file, as shown in errors; empty where there is none.
        values: its keys and values.
        lines: the line of each key, by its place.
        given: names of places that were given in addition to the file, such as on the command line.
    """

    source: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Place, int] = field(default_factory=dict)
    given: Mapping[Place, str] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """Return the beginning of an error about a place: the argument that gave it, or file and line."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.given:
                return f"{self.given[place[:end]]}: "
        for end in range(len(place), 0, -1):
            if place[:end] in self.lines:
                return f"{self.source} line {self.lines[place[:end]]}: "
        return f"{self.source}: " if self.source else ""

    def overridden(self, place: Sequence[str], value: Any, name: str) -> Settings:
        """Return the settings with another value at a place; `name` is how the user gave it.

        Raises:
            KeyError: a part of the place has a value that is no mapping; its name.
        """
        values = _with(self.values, place, value)
        return replace(self, values=values, given={**self.given, tuple(place): name})


def _with(values: Mapping[str, Any], place: Sequence[str], value: Any) -> dict[str, Any]:
    name, *rest = place
    if not rest:
        return {**values, name: value}
    inner = values.get(name) or {}
    if not isinstance(inner, Mapping):
        raise KeyError(name)
    return {**values, name: _with(inner, rest, value)}


def read_yaml(path: Path, error: type[CuecraftError]) -> Settings:
    """Read a YAML file of keys and values; nothing in it is run.

    Args:
        path: the file.
        error: what is raised where it cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: not readable as UTF-8 text ({cause})") from cause
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, source: str, error: type[CuecraftError]) -> Settings:
    """Read YAML text; see `read_yaml`."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = dict(_lines(node, (), source, error)) if isinstance(node, yaml.MappingNode) else {}
        found = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise error(f"{source}{where}: not valid YAML ({getattr(cause, 'problem', cause)}); fix it") from None
    except CuecraftError:
        raise
    except (ValueError, RecursionError) as cause:  # such as a date that is none
        raise error(f"{source}: not valid YAML ({cause}); fix it") from None
    if not isinstance(found, dict):
        raise error(f"{source}: a YAML {type(found).__name__}, but settings are 'key: value' lines")
    return Settings(source, found, lines)


def _lines(node: Any, place: Place, source: str, error: type[CuecraftError]) -> Iterator[tuple[Place, int]]:
    """Yield the line of each key of a mapping, and of what is in it.

    Raises the given error where a key is no text, or is given twice.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _lines(item, (*place, number), source, error)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str":
            shown = getattr(key, "value", "")
            raise error(f"{source} line {line}: the key {shown!r} is read as no text; put it in quotes")
        if key.value in seen:
            raise error(f"{source} line {line}: {'.'.join(map(str, (*place, key.value)))} is given twice; keep one")
        seen.add(key.value)
        yield (*place, key.value), line
        yield from _lines(value, (*place, key.value), source, error)


def shown_place(place: Sequence[str | int]) -> str:
    """Return a place as it is written in an error or an override."""
    return ".".join(map(str, place))


def explained(
    cause: ValidationError, settings: Settings, plain: Callable[[Place], Place], known: Callable[[Place], Sequence[str]]
) -> str:
    """Return the one line that states the first error of a validation: where, what, and what to do.

    Args:
        cause: the error.
        settings: what was validated.
        plain: makes pydantic's place one of the settings, without the names of the shapes that were tried.
        known: the keys that a place may have.
    """
    # A key that is not known before one that is missing: it is often the same one, misspelt. Of a value that may be of
    # several shapes, the shape that it came nearest to.
    first = max(cause.errors(), key=lambda found: (found["type"] == "extra_forbidden", len(found["loc"])))
    place = plain(first["loc"])
    where = settings.where(place)
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key {shown_place(place)!r}; the keys are {', '.join(known(place[:-1]))}"
    if first["type"] == "missing":
        return f"{where}{shown_place(place)} is missing; give it"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = "" if first["type"] == "value_error" and isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{where}{shown_place(place)}: {message}{got}"


def keys_of(kind: type[BaseModel]) -> list[str]:
    """Return the keys of a kind of settings."""
    return [option.alias or name for name, option in kind.model_fields.items()]


def flattened(document: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return a document's values by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        key = f"{place}.{name}" if place else name
        found |= flattened(value, key) if isinstance(value, Mapping) and value else {key: value}
    return found
