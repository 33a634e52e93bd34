"""The model's own layers: changing the hidden states that enter them, checkpointing, and gradients for training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cuecraft.backbone.budget import ONE_PASS_AT_A_TIME
from cuecraft.core.errors import BackboneError


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


def adding(offsets: Tensor, rows: Tensor, columns: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return a change, for `entering`, that adds offsets `[n_layers, M, d]` at M places (row, column) of a batch."""
    return lambda layer, hidden: hidden.index_put((rows, columns), offsets[layer], accumulate=True)


class _Saving(threading.local):
    is_on = False


_SAVING = _Saving()


@contextmanager
def gradient_checkpointing() -> Iterator[None]:
    """Have passes of this thread keep only what enters each layer, and compute the layers again for the gradient."""
    before, _SAVING.is_on = _SAVING.is_on, True
    try:
        yield
    finally:
        _SAVING.is_on = before


@contextmanager
def recomputed(
    layers: Callable[[], Sequence[Any]], around: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Where `gradient_checkpointing` is on, checkpoint each layer for the passes of this thread.

    Transformers' own switch works in training mode only, and would compute a layer again after this pass has given
    back what it borrowed from the model.

    Args:
        layers: gives the model's layers.
        around: surrounds a layer's second computation with what the pass had borrowed.
    """
    if not (_SAVING.is_on and torch.is_grad_enabled()):
        yield
        return
    owner = threading.get_ident()

    def forward(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return own(*args, **kwargs)
        surroundings = lambda: (nullcontext(), around())  # noqa: E731
        return checkpoint(own, *args, use_reentrant=False, context_fn=surroundings, **kwargs)

    with ONE_PASS_AT_A_TIME:
        lent = layers()
        for layer in lent:
            layer.forward = partial(forward, layer.forward)  # shadows the module's own method until deleted
        try:
            yield
        finally:
            for layer in lent:
                del layer.forward


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Let tensors made here be ordinary ones, which can be trained with later: those of inference mode never can."""
    is_on = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(is_on):
        yield


@contextmanager
def training() -> Iterator[None]:
    """Take gradients here, also where the caller has switched them off or is in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
