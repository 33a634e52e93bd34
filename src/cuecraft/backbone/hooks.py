"""What a forward pass does otherwise than the model by itself.

A hosted model (`hosted`) has layers and an output embedding that ask for the pass of the current context. Without one
they do what they always do. So threads run passes over one model at once, and no pass changes what another one sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cuecraft.core.errors import BackboneError

#: For each layer keys and values `[b, n_kv_heads, P, head_dim]`.
Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """What one forward pass does otherwise.

    Args:
        config: of the model whose attention reads `past` or fills `kept`; None where attention is the model's own.
        past: keys and values in front of the pass's own tokens; None for none.
        kept: filled with the keys and values `[b, n_kv_heads, N, head_dim]` of each layer; None to keep none.
        enters: given a layer's number and the hidden states `[b, L, d]` entering it, before `change`, looks at them.
        change: given a layer's number and the hidden states `[b, L, d]` entering it, returns what enters instead.
        output: given what enters the output embedding `[b, L, d]`, returns what stands for the logits.
        saves: keep only what enters each layer, and compute the layers again for the gradient.
        asked: numbers of the layers that read `past`.
        layer: the number of the layer that runs now; empty between layers.
    """

    config: Any = None
    past: Layers | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    enters: Callable[[int, Tensor], None] | None = None
    change: Callable[[int, Tensor], Tensor] | None = None
    output: Callable[[Tensor], Tensor] | None = None
    saves: bool = False
    asked: set[int] = field(default_factory=set)
    layer: list[int] = field(default_factory=list)


#: Keeps what enters a function, and computes it again for the gradient. A model in evaluation mode draws nothing, so
#: the state of the process's generator is left to other threads.
computed_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

_PASS: ContextVar[Pass | None] = ContextVar("cuecraft_pass", default=None)


def current_pass() -> Pass | None:
    """Return the pass of this context; None where there is none."""
    return _PASS.get()


@contextmanager
def passing(**changes: Any) -> Iterator[Pass]:
    """Let passes in this context do this too: fields of `Pass`."""
    with _within(replace(_PASS.get() or Pass(), layer=[], **changes)) as own:
        yield own


@contextmanager
def _within(own: Pass) -> Iterator[Pass]:
    before = _PASS.set(own)
    try:
        yield own
    finally:
        _PASS.reset(before)


def gradient_checkpointing() -> Any:
    """Have passes of this context keep only what enters each layer, and compute the layers again for the gradient.

    Transformers' own switch works in training mode only, and would compute a layer again without what the pass did
    otherwise.
    """
    return passing(saves=True)


class _Hosted:
    """A module's class mixed with this one asks for the pass of its context; a copy of the module does too."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, type(self).__bases__, self.__getstate__()


class _Layer(_Hosted):
    hosted_number: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        own = _PASS.get()
        if own is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if own.enters is not None:
            own.enters(self.hosted_number, args[0] if args else kwargs["hidden_states"])
        if own.change is not None and args:
            args = (own.change(self.hosted_number, args[0]), *args[1:])
        elif own.change is not None:
            kwargs = kwargs | {"hidden_states": own.change(self.hosted_number, kwargs["hidden_states"])}

        def run(*args: Any, **kwargs: Any) -> Any:
            own.layer[:] = [self.hosted_number]
            try:
                return super(_Layer, self).forward(*args, **kwargs)  # type: ignore[misc]
            finally:
                own.layer.clear()

        def again(*args: Any, **kwargs: Any) -> Any:
            with _within(own):  # also within a backward pass, perhaps in a thread of its own, and within a second one
                return run(*args, **kwargs)

        if own.saves and torch.is_grad_enabled():
            return computed_again(again, *args, **kwargs)
        return run(*args, **kwargs)


class _OutputEmbedding(_Hosted):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the logits of hidden states, or what the pass makes of them."""
        own = _PASS.get()
        if own is None or own.output is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return own.output(*args, **kwargs)


@cache
def _mixed(kind: Any, base: Any) -> Any:
    return type(base.__name__, (kind, base), {"__module__": base.__module__})


def _blank(kind: Any, base: Any) -> Any:
    made = _mixed(kind, base)
    return made.__new__(made)


def _host(module: Any, kind: Any) -> None:
    if isinstance(module, kind):
        return
    own: Any = type(module)
    module.__class__ = _mixed(kind, own)
    if hasattr(module, "_old_forward"):  # accelerate calls this one, which is of the class before
        module._old_forward = type(module).forward.__get__(module)


def hosted(model: Any) -> Any:
    """Return a model with layers and an output embedding, where it has such, that ask for the pass of their context."""
    with suppress(BackboneError):
        for number, layer in enumerate(layer_list(model, "")):
            _host(layer, _Layer)
            layer.hosted_number = number
    head = model.get_output_embeddings()
    if head is not None:
        _host(head, _OutputEmbedding)
    return model


def asks_for_its_pass(layer: Any) -> bool:
    """Return whether a layer of a hosted model runs our `forward`, and none that was set on the module itself.

    Modules that were compiled one by one have such a one. Accelerate's calls ours.
    """
    return isinstance(layer, _Layer) and ("forward" not in vars(layer) or "_old_forward" in vars(layer))


def layer_list(model: Any, name: str) -> tuple[Any, ...]:
    """Return a model's layers, first to last: the largest module list as long as its configuration says.

    Lists of another use may be as long, such as those of norms or experts, or the layers of a vision tower. The layers
    of the text model have more parameters than these, and more than any list within one of them.

    Raises:
        BackboneError: there is none, as where layers share their weights (ALBERT).
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    modules = [own for own in model.base_model.modules() if isinstance(own, torch.nn.ModuleList)]
    lists: list[torch.nn.ModuleList] = [own for own in modules if len(own) == count]
    if lists:  # of equal ones the outermost
        sizes = [sum(one.numel() for one in own.parameters()) for own in lists]
        return tuple(lists[sizes.index(max(sizes))])
    raise BackboneError(f"{name} ({model.config.model_type}) has no list of its layers; use another method")


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


def with_plain_output(model: Any, name: str) -> Any:
    """Return a model as it is, or raise BackboneError where an adapter of PEFT changes its output embedding.

    Scores are products with some rows of the weight, which the adapter is no part of.
    """
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise BackboneError(
            f"an adapter changes the output embedding of {name}; merge it (merge_and_unload()), or give LoRA other "
            "targets"
        )
    return model
