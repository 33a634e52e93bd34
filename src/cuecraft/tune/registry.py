"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuecraft.errors import MethodError
from cuecraft.method import Method
from cuecraft.options import make_options
from cuecraft.search import AutoPrompt, StraightThrough
from cuecraft.tune.auto import Auto
from cuecraft.tune.contrastive.method import Contrastive
from cuecraft.tune.deep_cue import DeepCueTuning
from cuecraft.tune.fine_tuning import FullFineTuning, LoraTuning, LoraWithPrompt
from cuecraft.tune.first_order import FirstOrder
from cuecraft.tune.hybrid import Hybrid
from cuecraft.tune.in_context import InContext
from cuecraft.tune.prefix_tuning import PrefixTuning, PTuningV2
from cuecraft.tune.probe import EmbeddingProbe, LinearProbe
from cuecraft.tune.prompt_tuning import PromptTuning, PTuning
from cuecraft.tune.soup import Soup
from cuecraft.tune.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ZeroShot,
        InContext,
        AutoPrompt,
        StraightThrough,
        PromptTuning,
        PTuning,
        PrefixTuning,
        PTuningV2,
        DeepCueTuning,
        FirstOrder,
        Contrastive,
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
