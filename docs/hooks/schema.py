"""The JSON Schema of recipes as Markdown: a table for each section of a recipe, and one for each method's options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
_NO_BOUND = 2**62  # what a number type holds anyway


def schema_reference(schema: Schema) -> str:
    """Return the sections of a recipe's kinds, of what they are made of, and of the methods."""
    parts = schema["$defs"]
    recipes = [_target(kind) for kind in schema["anyOf"]]
    methods = {name: own for name, own in parts.items() if "const" in own.get("properties", {}).get("method", {})}
    lines: list[str] = []
    for name in recipes:
        lines += [f"## {name.removesuffix('Recipe')} recipes {{: #{name.lower()} }}\n", *_section(parts[name], parts)]
    lines.append("## Sections\n")
    for name, own in parts.items():
        if name not in recipes and name not in methods and "properties" in own:
            lines += [f"### {name} {{: #{name.lower()} }}\n", *_section(own, parts)]
    lines.append("## Methods and their options\n")
    for name, own in methods.items():
        lines += [f"### `{own['properties']['method']['const']}` {{: #{name.lower()} }}\n", *_section(own, parts)]
    return "\n".join(lines)


def model_reference(models: Mapping[str, Schema]) -> str:
    """Return a section for each JSON Schema by its name, and for each part that one refers to."""
    parts: dict[str, Schema] = {}
    for name, own in models.items():
        parts |= {name: own} | dict(own.get("$defs", {}))
    lines: list[str] = []
    for name, own in parts.items():
        if "properties" in own:
            lines += [f"### {name} {{: #{name.lower()} }}\n", *_section(own, parts)]
    return "\n".join(lines)


def _target(reference: Schema) -> str:
    return str(reference["$ref"].rpartition("/")[2])


def _section(own: Schema, parts: Mapping[str, Schema]) -> Iterator[str]:
    if "description" in own:
        yield f"{own['description']}\n"
    rows = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for key, value in own["properties"].items():
        default = "required" if key in own.get("required", ()) else ""
        if value.get("default") is not None:
            default = f"`{json.dumps(value['default'])}`"
        meaning = value.get("description", "").replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(value, parts)} | {default} | {meaning} |")
    yield "\n".join(rows) + "\n"


def _type(value: Schema, parts: Mapping[str, Schema]) -> str:
    """Return a value's type in a cell: names, bounds, choices, and links to other sections."""
    if "$ref" in value:
        name = _target(value)
        target = parts[name]
        return _type(target, parts) if "enum" in target else f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in value:
            kinds = [_type(kind, parts) for kind in value[key] if kind.get("type") != "null"]
            if len(kinds) > 6:  # the union of all methods
                return "[a method's options](#methods-and-their-options)"
            return " or ".join(dict.fromkeys(kinds))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    kind = str(value.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(value.get('items', {}), parts)}"
    if kind == "object" and isinstance(value.get("additionalProperties"), Mapping):
        return f"mapping to {_type(value['additionalProperties'], parts)}"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(
        [
            kind,
            *(f"{word} {value[key]:g}" for key, word in bounds.items() if abs(value.get(key, _NO_BOUND)) < _NO_BOUND),
        ]
    )
