"""The methods by name; a method's module is imported when the method is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuecraft.core.errors import MethodError
from cuecraft.core.lazy import Registry
from cuecraft.core.options import make_options
from cuecraft.methods.problem import Method

METHODS: Registry[Method] = Registry(
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
