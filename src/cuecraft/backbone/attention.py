"""Attention of new tokens over keys and values that were not computed in the same pass, without copying them.

An ordinary cache joins the kept keys and values with the new ones in every layer, once more for each query head
that shares them, and a training step keeps all of that for the backward pass. Here a layer's scores over the kept
tokens and over the new tokens are computed apart and meet in one softmax; keys and values stay where they are.

Kept are the contexts of causal models, and prefixes (trained keys and values) of any model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cuecraft.backbone.hooks import Layers, current_pass, passing
from cuecraft.core.errors import BackboneError

_NAME = "cuecraft"
_UNKNOWN_HERE = ("softcap", "s_aux", "position_bias")  # what some architectures add to attention


def _implementation(config: Any) -> str | None:
    """Return the attention that a model has: ours within a pass that asks for it, else its own."""
    own = current_pass()
    name: str | None = _PLAIN.fget(config)
    return _NAME if own is not None and own.config is config else name


# Once for the process, and no model is changed: a pass is of one context, and its configuration of one model.
_PLAIN = PreTrainedConfig._attn_implementation
PreTrainedConfig._attn_implementation = property(_implementation, _PLAIN.fset)


@contextmanager
def attending_to(model: Any, layers: Layers) -> Iterator[None]:
    """Let a pass of a hosted model attend to keys and values that it does not compute.

    Args:
        model: a transformers model.
        layers: what to attend to, in front of the pass's own tokens.

    The pass's mask is `[b, 1, N, P + N]`, or of its own N tokens, which then all see all P. Positions are the pass's.

    Raises:
        BackboneError: a layer did not ask: the architecture has an attention of its own.
    """
    with passing(config=model.config.get_text_config(), past=layers, asked=set()) as own:
        yield
        if len(own.asked) != len(layers):
            raise BackboneError(
                f"the attention of {model.config.model_type} takes no keys and values from outside; "
                "use another method or model"
            )


@contextmanager
def keeping(model: Any) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Yield a mapping that a pass of a hosted model fills: layer -> keys and values `[b, n_kv_heads, N, head_dim]`."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    with passing(config=model.config.get_text_config(), kept=kept):
        yield kept


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
        module: the layer's attention.
        query: `[b, n_heads, N, head_dim]`.
        key: `[b, n_kv_heads, N, head_dim]` of the new tokens.
        value: the same of the values.
        attention_mask: `[b, 1, N, P + N]` or `[b, 1, N, N]`, bool or added to the scores.
        scaling: of the scores; None for ``head_dim ** -0.5``.
        dropout: not used: the model is frozen.
        **options: an architecture's own.

    Raises:
        NotImplementedError: the architecture adds something of its own to attention.
    """
    own = current_pass()
    assert own is not None  # or this attention would not run
    number = int(own.layer[0] if own.layer else module.layer_idx)
    if own.kept is not None:
        own.kept[number] = (key, value)
    if own.past is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    if any(options.get(name) is not None for name in _UNKNOWN_HERE):
        raise NotImplementedError("attention of an unknown kind")
    own.asked.add(number)
    old_key, old_value = own.past[number]
    rows, heads, count, width = query.shape
    groups = key.shape[1]
    # Heads that share keys and values stand below each other, as more queries of one head.
    folded = (rows, groups, heads // groups * count, -1)
    queries = (query * (width**-0.5 if scaling is None else scaling)).reshape(folded)
    scores = torch.cat([queries @ old_key.transpose(-1, -2), queries @ key.transpose(-1, -2)], dim=-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(rows, groups, heads // groups, count, -1)
    if attention_mask is not None:
        scores.add_(_additive(attention_mask, scores)[:, :, None])
    weights = scores.softmax(-1).to(query.dtype)
    over_old, over_new = weights.view(folded).split([old_key.shape[2], key.shape[2]], dim=-1)
    output = over_old @ old_value + over_new @ value
    return output.view(rows, heads, count, -1).transpose(1, 2), None


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """Return a mask `[b, 1, N, P + N]` to add to scores; what it does not speak of is seen by all."""
    if mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(scores.dtype).min
        )
    return functional.pad(mask, (scores.shape[-1] - mask.shape[-1], 0))


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """Return the mask of a pass that brings none of its own, never left out in the hope of a faster kernel."""
    mask: Tensor | None = sdpa_mask(*args, **options | {"allow_is_causal_skip": False})
    return mask


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not checked
    """Keys and values that a pass attends to and adds nothing to.

    So that a layer which is computed again for its gradient meets the same ones.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values with new ones behind them."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def cache_of(layers: Layers) -> DynamicCache:
    """Wrap keys and values as the model's ordinary cache, for architectures with attention of their own kind."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = _FixedLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
