"""The command line as Markdown: a section for each command, a table for each group of options."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any


def command_reference(app: Any) -> str:
    """Return the sections of every visible command of a Typer application, in the order of its help."""
    from typer.main import get_command

    return "\n".join(_sections(get_command(app), "cuecraft", 2))


def command_names(command: Any, name: str = "cuecraft") -> Iterator[tuple[str, Any]]:
    """Yield the whole name of each visible command that does something, and the command."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for own, child in children.items():
        if not child.hidden:
            yield from command_names(child, f"{name} {own}")


def _sections(command: Any, name: str, level: int) -> Iterator[str]:
    for whole, child in command_names(command, name):
        yield f"{'#' * level} {whole.partition(' ')[2]}\n"
        yield _prose(child.help)
        arguments = [p for p in child.params if p.param_type_name == "argument" and not p.hidden]
        options = [p for p in child.params if p.param_type_name == "option" and not p.hidden]
        usage = [whole, *(["[OPTIONS]"] if options else []), *(_shown(argument) for argument in arguments)]
        yield f"```text\n{' '.join(usage)}\n```\n"
        if arguments:
            yield from _table("argument", arguments)
        panels: dict[str, list[Any]] = {}
        for option in options:
            panel = option.rich_help_panel
            panels.setdefault(panel if isinstance(panel, str) else "", []).append(option)
        for panel, members in panels.items():
            if panel:
                yield f"**{panel}**\n"
            yield from _table("option", members)
        if isinstance(child.epilog, str) and child.epilog:
            yield f"```text\n{child.epilog}\n```\n"


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        name += "..." if parameter.nargs != 1 and not name.endswith("...") else ""
        return name if parameter.required else f"[{name}]"
    flags = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return flags if parameter.is_flag else f"{flags} {parameter.metavar or parameter.name.upper()}"


def _table(kind: str, parameters: list[Any]) -> Iterator[str]:
    rows = [f"| {kind} | default | |", "| --- | --- | --- |"]
    for parameter in parameters:
        notes = [_prose(parameter.help or "").replace("\n", " ").strip()]
        annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            notes.append("One of " + ", ".join(f"`{own.value}`" for own in annotation) + ".")
        if parameter.multiple:
            notes.append("May be repeated.")
        rows.append(f"| `{_shown(parameter)}` | {_default(parameter)} | {' '.join(notes)} |".replace("`|`", "`or`"))
    yield "\n".join(rows) + "\n"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value in ([], ()) or callable(value):
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _prose(text: str | None) -> str:
    """Return help text as Markdown: what looks like a tag or a cell's end is escaped."""
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").strip() + "\n"
