"""The model's own layers, and adding to the hidden states that enter them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.batching import ONE_PASS_AT_A_TIME
from cuecraft.errors import BackboneError


def layer_list(model: Any, name: str) -> tuple[Any, ...]:
    """Return a model's layers, first to last: the outermost module list as long as its configuration says.

    Raises:
        BackboneError: there is none, as where layers share their weights (ALBERT).
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return tuple(module)
    raise BackboneError(f"{name} ({model.config.model_type}) has no list of its layers; use another method")


@contextmanager
def entering(layers: Sequence[Any], change: Callable[[int, Tensor], Tensor] | None) -> Iterator[None]:
    """Change the hidden states that enter each layer, for the passes of this thread.

    Args:
        layers: the model's layers.
        change: given a layer's number and the hidden states `[b, L, d]` entering it, returns what enters instead;
            None changes nothing.
    """
    if change is None:
        yield
        return
    owner = threading.get_ident()

    def hook(number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != owner:
            return None
        if args:
            return (change(number, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(number, kwargs["hidden_states"])}

    with ONE_PASS_AT_A_TIME, ExitStack() as stack:
        for number, layer in enumerate(layers):
            handle = layer.register_forward_pre_hook(partial(hook, number), with_kwargs=True)
            stack.callback(handle.remove)
        yield
