"""Options of the command line, made of the sections of a run: one for each field, with its meaning, default and bounds.

A command has a section as a parameter; `expanded` puts an option in place of each of its fields, and gives the command
the section that they make. Values that were not given are left out, so defaults are the sections' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cuecraft.cli.options import FLAGS, names_of, numbers_of, unescaped, words_of
from cuecraft.core.errors import MethodError, named

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Fields:
    """Which fields of a section a command has options for; all, unless some are named.

    Args:
        only: their names.
        without: names of those that it has none for.
        says: help in place of a field's own.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    says: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: type[BaseModel]) -> dict[str, FieldInfo]:
        """Return the fields by name."""
        fields = kind.model_fields
        return {name: fields[name] for name in self.only or fields if name not in self.without}


#: What the words of a command line mean, of options that are written in a way of their own.
_READ: Mapping[str, Callable[[Any], Any]] = {
    "label_words": words_of,
    "classes": names_of,
    "seeds": numbers_of,
    "template": unescaped,
    "system": unescaped,
}
#: How help writes an option's value, or what it says in addition.
_SHOWN = {
    "label_words": "CLASS=word or CLASS=word,word; repeat for each class",
    "classes": "with --unlabeled: classes with commas between",
    "seeds": "such as 0,1,2: an artifact for each, mean and sd; OUT is their ensemble",
    "text_columns": "column of text; repeat for several fields",
    "chat": "write texts by the tokenizer's chat template; by default auto and advise try both without --template",
}
_REPEATED = ("label_words", "text_columns")


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command with options in place of the fields of its sections."""
    hints = get_type_hints(function, include_extras=True)
    sections: dict[str, tuple[type[BaseModel], dict[str, str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind, chosen = _section(hints[parameter.name])
        if kind is None:
            parameters.append(_parameter(parameter.name, hints[parameter.name], parameter.default))
            continue
        own = {FLAGS.get(name, name): name for name in chosen.of(kind)}
        sections[parameter.name] = (kind, own)
        said = {**_SHOWN, **chosen.says}
        parameters += [_option(flag, name, kind.model_fields[name], said.get(name)) for flag, name in own.items()]

    @wraps(function)
    def command(**values: Any) -> None:
        for section, (kind, own) in sections.items():
            given = {name: values.pop(flag) for flag, name in own.items()}
            values[section] = made(kind, given)
        function(**values)

    # Arguments without a default first, as Python wants it.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__
    return command


def made(kind: type[S], values: Mapping[str, Any]) -> S:
    """Return a section of values by name; None is no value.

    Raises:
        MethodError: a value is of the wrong kind or out of range.
    """
    given = {name: _read(kind, name, value) for name, value in values.items() if value not in (None, [])}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise MethodError(message) from None
        place = str(first["loc"][0])
        got = "" if first["type"] == "value_error" else f" (got {first['input']!r})"
        message = message[:1].lower() + message[1:]
        raise MethodError(f"{named(place)}: {message}{got}") from None


def _read(kind: type[BaseModel], name: str, value: Any) -> Any:
    """Return what a value of the command line means."""
    if value == ["auto"] and Literal["auto"] in get_args(kind.model_fields[name].annotation):
        return "auto"
    return _READ[name](value) if name in _READ else value


def _section(hint: Any) -> tuple[type[BaseModel] | None, Fields]:
    """Return the section that a parameter is, None for another one, and which of its fields are meant."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not (inspect.isclass(kind) and issubclass(kind, BaseModel)):
        return None, Fields()
    return kind, next((mark for mark in marks if isinstance(mark, Fields)), Fields())


def _option(flag: str, name: str, field: FieldInfo, said: str | None) -> inspect.Parameter:
    """Return the parameter of a field; its default is no value, and help shows the field's own."""
    meaning = said or field.description or ""
    shown = meaning[:1].upper() + meaning[1:] + "."
    more: dict[str, Any] = {}
    for bound in field.metadata:
        if isinstance(bound, Ge) and _kind(field) in (int, float):
            more["min"] = bound.ge
    default: Any = field.get_default(call_default_factory=False)
    if name not in _REPEATED and isinstance(default, str | int) and not isinstance(default, bool):
        more["show_default"] = str(default)
    names = list(_names(flag, field))
    kind = _kind(field)
    if field.is_required():
        hint: Any = Annotated[kind, typer.Argument(help=shown)]
        return _parameter(flag, hint, inspect.Parameter.empty)
    if name in _REPEATED:
        kind = list[str]
    return _parameter(flag, Annotated[kind | None, typer.Option(*names, help=shown, **more)], None)


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _names(flag: str, field: FieldInfo) -> Iterator[str]:
    """Yield the names of an option: a switch that is off has one, one that may be neither has both."""
    written = "--" + flag.replace("_", "-")
    if bool in (field.annotation, *get_args(field.annotation)):
        yield written if field.default is False else f"{written}/--no-{flag.replace('_', '-')}"
    else:
        yield written


def _kind(field: FieldInfo) -> Any:
    """Return what one value is on the command line: a number, a switch, or text."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if kind in (bool, int, float):
            return kind
        if get_origin(kind) is Annotated and get_args(kind)[0] in (int, float):
            return get_args(kind)[0]
    return str
