"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from cuecraft.errors import CuecraftError, MethodError
from cuecraft.method import Method
from cuecraft.options import Options
from cuecraft.search import AutoPrompt, StraightThrough
from cuecraft.tune.auto import Auto
from cuecraft.tune.deep_cue import DeepCueTuning
from cuecraft.tune.fine_tuning import FullFineTuning, LoraTuning, LoraWithPrompt
from cuecraft.tune.hybrid import Hybrid
from cuecraft.tune.prefix_tuning import PrefixTuning, PTuningV2
from cuecraft.tune.probe import EmbeddingProbe, LinearProbe
from cuecraft.tune.prompt_tuning import PromptTuning, PTuning
from cuecraft.tune.soup import Soup
from cuecraft.tune.zero_shot import ZeroShot

Chosen = TypeVar("Chosen", bound=Options)

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ZeroShot,
        AutoPrompt,
        StraightThrough,
        PromptTuning,
        PTuning,
        PrefixTuning,
        PTuningV2,
        DeepCueTuning,
        Hybrid,
        Soup,
        LinearProbe,
        EmbeddingProbe,
        LoraTuning,
        LoraWithPrompt,
        FullFineTuning,
        Auto,
    )
}


def make_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Return a method with its options.

    Args:
        name: one of `METHODS`.
        options: values for the method's fields; a part's field is written with a dot, ``tune.epochs``.

    Raises:
        MethodError: unknown name or option, or a value out of range.
    """
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}; choose {', '.join(METHODS)}")
    return make_options(METHODS[name], options)


def make_options(kind: type[Chosen], options: Mapping[str, Any] | None = None) -> Chosen:
    """Return options of a kind that has a name, such as a method.

    Raises:
        MethodError: unknown option, or a value out of range.
    """
    name = getattr(kind, "name", kind.__name__)
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
            raise MethodError(f"method {name} has no option {where!r}; it has {known}") from None
        raise MethodError(f"method {name}, option {where!r}: {first['msg'].lower()} (got {first['input']!r})") from None


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
