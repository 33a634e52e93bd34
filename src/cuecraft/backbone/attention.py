"""Attention of new tokens over a context that was kept, without copying the context.

An ordinary cache joins the context's keys and values with the new ones in every layer, once more for each query head
that shares them, and a training step keeps all of that for the backward pass. Here a layer's scores over the context
and over the new tokens are computed apart and meet in one softmax; keys and values stay where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cuecraft.backbone.batching import ONE_PASS_AT_A_TIME

_NAME = "cuecraft"
_UNKNOWN_HERE = ("softcap", "s_aux", "position_bias")  # what some architectures add to attention


#: For each layer keys and values `[b, n_kv_heads, P, head_dim]`.
Layers = Sequence[tuple[Tensor, Tensor]]


class _Pass(threading.local):
    """The context of this thread's pass."""

    layers: Layers | None = None


_PASS = _Pass()


@contextmanager
def attending_to(model: Any, layers: Layers) -> Iterator[None]:
    """Let a pass of `model` attend to keys and values of earlier tokens.

    The pass's mask is `[b, 1, N, P + N]`; its positions must count the earlier tokens.
    """
    config = model.config.get_text_config()
    with ONE_PASS_AT_A_TIME:
        own = config._attn_implementation
        config._attn_implementation, _PASS.layers = _NAME, layers
        try:
            yield
        finally:
            config._attn_implementation, _PASS.layers = own, None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention `[b, N, n_heads, head_dim]` of queries `[b, n_heads, N, head_dim]`.

    Args:
        module: the layer's attention; its `layer_idx` finds the context.
        query: `[b, n_heads, N, head_dim]`.
        key: `[b, n_kv_heads, N, head_dim]` of the new tokens.
        value: the same of the values.
        attention_mask: `[b, 1, N, P + N]`, added to the scores.
        scaling: of the scores; None for ``head_dim ** -0.5``.
        dropout: not used: the model is frozen.
        **options: an architecture's own.

    Raises:
        NotImplementedError: the architecture adds something of its own to attention.
    """
    context = _PASS.layers
    if context is None:  # another thread's pass over the same model
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    if any(options.get(name) is not None for name in _UNKNOWN_HERE):
        raise NotImplementedError("attention of an unknown kind")
    old_key, old_value = context[module.layer_idx]
    rows, heads, count, width = query.shape
    groups = key.shape[1]
    # Heads that share keys and values stand below each other, as more queries of one head.
    folded = (rows, groups, heads // groups * count, -1)
    queries = (query * (width**-0.5 if scaling is None else scaling)).reshape(folded)
    scores = torch.cat([queries @ old_key.transpose(-1, -2), queries @ key.transpose(-1, -2)], dim=-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(rows, groups, heads // groups, count, -1)
    if attention_mask is not None:
        scores.add_(attention_mask[:, :, None])
    weights = scores.softmax(-1).to(query.dtype)
    over_old, over_new = weights.view(folded).split([old_key.shape[2], key.shape[2]], dim=-1)
    output = over_old @ old_value + over_new @ value
    return output.view(rows, heads, count, -1).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)
# A pass brings a mask of its own; this one is for other threads' passes that meet our name in the configuration.
AttentionMaskInterface.register(_NAME, sdpa_mask)


def cache_of(layers: Layers) -> DynamicCache:
    """Wrap keys and values as the model's ordinary cache, for architectures with attention of their own kind.

    A pass adds to the wrapper, never to the tensors.
    """
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
