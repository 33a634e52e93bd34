"""The methods by name; a method's module is imported when the method is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

from cuecraft.core.errors import MethodError
from cuecraft.core.options import make_options
from cuecraft.methods.problem import Method


class Registry(MutableMapping[str, type[Method]]):
    """Methods by name, in the order in which they are shown.

    Args:
        homes: `module:Class` of each method, by its name.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._methods: dict[str, str | type[Method]] = dict(homes)

    def __getitem__(self, name: str) -> type[Method]:
        """Return a method's class, imported now if it was not before."""
        found = self._methods[name]
        if isinstance(found, str):
            module, _, kind = found.partition(":")
            method: type[Method] = getattr(import_module(module), kind)
            self._methods[name] = found = method
        return found

    def __setitem__(self, name: str, method: type[Method]) -> None:
        """Add a method, or replace the one of that name."""
        self._methods[name] = method

    def __delitem__(self, name: str) -> None:
        """Remove a method."""
        del self._methods[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names; nothing is imported."""
        return iter(self._methods)

    def __len__(self) -> int:
        """Return how many methods there are."""
        return len(self._methods)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a method of that name; nothing is imported."""
        return name in self._methods


METHODS = Registry(
    {
        "zero-shot": "cuecraft.methods.in_context:ZeroShot",
        "in-context": "cuecraft.methods.in_context:InContext",
        "autoprompt": "cuecraft.methods.search.autoprompt:AutoPrompt",
        "straight-through": "cuecraft.methods.search.straight_through:StraightThrough",
        "prompt-tuning": "cuecraft.methods.train.soft:PromptTuning",
        "p-tuning": "cuecraft.methods.train.soft:PTuning",
        "prefix-tuning": "cuecraft.methods.train.prefix:PrefixTuning",
        "p-tuning-v2": "cuecraft.methods.train.prefix:PTuningV2",
        "deep-cue": "cuecraft.methods.train.deep:DeepCueTuning",
        "first-order": "cuecraft.methods.first_order:FirstOrder",
        "contrastive": "cuecraft.methods.contrastive.method:Contrastive",
        "hybrid": "cuecraft.methods.train.deep:Hybrid",
        "soup": "cuecraft.methods.train.soup:Soup",
        "linear-probe": "cuecraft.methods.train.probe:LinearProbe",
        "embedding-probe": "cuecraft.methods.train.probe:EmbeddingProbe",
        "lora": "cuecraft.methods.train.weights:LoraTuning",
        "lora-prompt": "cuecraft.methods.train.weights:LoraWithPrompt",
        "full": "cuecraft.methods.train.weights:FullFineTuning",
        "auto": "cuecraft.methods.auto:Auto",
    }
)


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
