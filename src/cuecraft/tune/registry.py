"""The methods by name; a method's module is imported when the method is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

from cuecraft.errors import MethodError
from cuecraft.method import Method
from cuecraft.options import make_options


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
        "zero-shot": "cuecraft.tune.zero_shot:ZeroShot",
        "in-context": "cuecraft.tune.in_context:InContext",
        "autoprompt": "cuecraft.search.autoprompt:AutoPrompt",
        "straight-through": "cuecraft.search.straight_through:StraightThrough",
        "prompt-tuning": "cuecraft.tune.prompt_tuning:PromptTuning",
        "p-tuning": "cuecraft.tune.prompt_tuning:PTuning",
        "prefix-tuning": "cuecraft.tune.prefix_tuning:PrefixTuning",
        "p-tuning-v2": "cuecraft.tune.prefix_tuning:PTuningV2",
        "deep-cue": "cuecraft.tune.deep_cue:DeepCueTuning",
        "first-order": "cuecraft.tune.first_order:FirstOrder",
        "contrastive": "cuecraft.tune.contrastive.method:Contrastive",
        "hybrid": "cuecraft.tune.hybrid:Hybrid",
        "soup": "cuecraft.tune.soup:Soup",
        "linear-probe": "cuecraft.tune.probe:LinearProbe",
        "embedding-probe": "cuecraft.tune.probe:EmbeddingProbe",
        "lora": "cuecraft.tune.fine_tuning:LoraTuning",
        "lora-prompt": "cuecraft.tune.fine_tuning:LoraWithPrompt",
        "full": "cuecraft.tune.fine_tuning:FullFineTuning",
        "auto": "cuecraft.tune.auto:Auto",
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
