"""Options of methods and of their parts, as Python or a command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from cuecraft.core.errors import CuecraftError, MethodError

_LARGEST = 1e30


def _from_word(value: Any, option: FieldInfo | None) -> Any:
    if option is None or not isinstance(value, str):
        return value
    kinds = (option.annotation, *get_args(option.annotation))
    if value == "none" and type(None) in kinds:
        return None
    return value.split(",") if any(get_origin(kind) is tuple for kind in kinds) else value


class Options(BaseModel):
    """Options of a method or of a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, values: Any) -> Any:
        """Read what a command line writes: `none`, and several values with commas between."""
        if not isinstance(values, Mapping):
            return values
        return {name: _from_word(value, cls.model_fields.get(name)) for name, value in values.items()}

    @field_validator("*")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        """Refuse numbers that single precision does not hold."""
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(own, float) and not abs(own) <= _LARGEST for own in numbers):
            raise PydanticCustomError("too_large", f"input should be a number up to {_LARGEST:g}")
        return value

    def longest_prompt(self) -> int:
        """Return the greatest prompt length that the options ask for, in tokens; 0 where they ask for none."""
        values = [getattr(self, name) for name in type(self).model_fields]
        parts = [value.longest_prompt() for value in values if isinstance(value, Options)]
        return max(getattr(self, "prompt_length", None) or 0, *parts, 0)


Chosen = TypeVar("Chosen", bound=Options)


def make_options(kind: type[Chosen], options: Mapping[str, Any] | None = None, called: str | None = None) -> Chosen:
    """Return options of a kind: a method, a part of one, or a command.

    Args:
        kind: the kind.
        options: values by name; a part's option is written with a dot, ``tune.epochs``.
        called: what errors call it; None for its `name`, as a method, or else that of the class.

    Raises:
        MethodError: unknown option, or a value out of range.
    """
    name = called or (f"method {method}" if (method := getattr(kind, "name", None)) else kind.__name__)
    try:
        return kind.model_validate(_nested(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, CuecraftError):
            raise cause from None
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(_option_names(kind))
            raise MethodError(f"{name} has no option {where!r}; it has {known}") from None
        raise MethodError(f"{name}, option {where!r}: {first['msg'].lower()} (got {first['input']!r})") from None


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check an estimator's arguments, which scikit-learn lets anybody set, before they are used.

    Args:
        arguments: by name; those that are not known here are checked where they are used.

    Raises:
        MethodError: one is of the wrong kind or out of range.
    """
    for name, (is_usable, remedy) in _ARGUMENTS.items():
        if name in arguments and not is_usable(arguments[name]):
            shown = " ".join(repr(arguments[name]).split())
            raise MethodError(f"{name} is {shown if len(shown) <= 60 else shown[:60] + '...'}; give {remedy}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


#: What an estimator's argument has to be, and what to give in place of something else.
_ARGUMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda value: isinstance(value, str), "a method's name"),
    "answers": (
        lambda value: value is None or isinstance(value, str | Mapping) or hasattr(value, "kind"),
        "a kind such as 'multilabel', {'kind': 'multilabel', ...}, an answer space, or None",
    ),
    "template": (lambda value: value is None or isinstance(value, str), "a string such as '{text}{mask}', or None"),
    "chat": (
        lambda value: value is None or isinstance(value, bool | Mapping),
        "True, False, {'system': ..., 'user': ..., 'assistant': ...}, or None",
    ),
    "method_options": (
        lambda value: value is None or (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)),
        "{option: value}, or None",
    ),
    "validation_fraction": (
        lambda value: _is_number(value) and 0 < value < 1,
        "a number between 0 and 1, ends excluded",
    ),
    "max_tokens": (lambda value: value is None or (_is_whole(value) and value > 0), "a whole number from 1, or None"),
    "time_limit": (lambda value: value is None or (_is_number(value) and value >= 0), "seconds from 0, or None"),
    "seed": (_is_whole, "a whole number"),
    "head": (lambda value: value is None or isinstance(value, str), "'causal', 'masked', 'sequence', or None"),
    "local_files_only": (lambda value: type(value).__name__ in ("bool", "bool_"), "True or False"),  # also NumPy's
}


def option_places(kind: type[Options], ending: str) -> list[str]:
    """Return the options of a kind, parts' options included, that are called so or end in a dot and this."""
    return [name for name in _option_names(kind) if f".{name}".endswith(f".{ending}")]


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise MethodError(f"option {parent!r} was given a value and parts ({key!r}); give one of them")
        branch[leaf] = value
    return tree


def _option_names(kind: type[Options], prefix: str = "") -> list[str]:
    names = []
    for name, option in kind.model_fields.items():
        part = option.annotation
        if isinstance(part, type) and issubclass(part, Options):
            names += _option_names(part, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
