"""Any transformers model, frozen, attending to a prefix: the one place that knows about its positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cuecraft.backbone.agreement import agree
from cuecraft.backbone.attention import attending_to, keeping
from cuecraft.backbone.base import position_limit
from cuecraft.backbone.hooks import Layers, gradient_checkpointing, hosted, layer_list
from cuecraft.core.errors import BackboneError, PromptError

_SAME = 1e-5  # relative: beyond that a later token is seen by an earlier one


class PrefixHost:
    """A frozen model that attends to keys and values from outside.

    Args:
        model: a transformers model; it is frozen and put into evaluation mode.

    Raises:
        BackboneError: it has no attention that could, or does not answer as it should with a prefix.
    """

    def __init__(self, model: Any) -> None:
        self._name = f"{type(model).__name__} ({model.config.model_type})"
        if getattr(model.config, "is_encoder_decoder", False):
            raise BackboneError(f"{self._name} is an encoder-decoder, which prefix-tuning does not support here")
        self._count = len(layer_list(model, type(model).__name__))
        self.model = hosted(model.eval().requires_grad_(False))
        #: Whether tokens see only those before them; then a prefix takes positions, else none.
        self.is_causal = False
        if not self._check():
            raise BackboneError(
                f"the attention of {self._name} takes no keys and values from outside, or not as its own; "
                "use another model, or prompt tuning"
            )

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def capacity(self, prefix: int) -> int | None:
        """Return how many tokens a text may have next to a prefix of so many; None for no limit."""
        limit = position_limit(self.model.config)
        return None if limit is None else max(0, limit - (prefix if self.is_causal else 0))

    def ordinary_ids(self, count: int, generator: torch.Generator | None = None) -> list[int]:
        """Return ids that are no special tokens: drawn, or the last ones of the vocabulary."""
        config = self.model.config.get_text_config()
        names = ("pad", "bos", "eos", "cls", "sep", "mask")
        special = {getattr(config, f"{name}_token_id", None) for name in names}
        ids = [n for n in range(self.vocab_size) if n not in special]
        if generator is None:
            return ids[-count:]
        return [ids[n] for n in torch.randint(len(ids), (count,), generator=generator).tolist()]

    @torch.no_grad()
    def read(self, token_ids: Sequence[int]) -> Tensor:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` of tokens that are read alone."""
        with keeping(self.model) as kept:
            self._hidden(token_ids)
        return torch.stack([torch.stack([part[0] for part in kept[n]]) for n in range(self._count)])

    def run(self, states: Tensor, inputs: dict[str, Any], body: bool = False) -> Any:
        """Return the model's output for a batch whose tokens all attend to a prefix.

        Args:
            states: `[n_layers, 2, n_kv_heads, P, head_dim]`.
            inputs: what the model takes, without the prefix in it.
            body: run the model without its head.

        Raises:
            PromptError: prefix and inputs have more positions than the model.
            BackboneError: the inputs bring a cache of their own.
        """
        if inputs.get("past_key_values") is not None:
            raise BackboneError("past_key_values cannot be combined with a prefix; call generate, or leave them out")
        given = inputs.get("input_ids")
        given = inputs.get("inputs_embeds") if given is None else given
        if given is None:
            raise BackboneError("the batch has neither input_ids nor inputs_embeds; give one of them")
        if self.is_causal:
            inputs = inputs | self._positions(inputs, states.shape[3], given)
        with self._attending(self._seen(states, len(given))):
            return (self.model.base_model if body else self.model)(**inputs)

    def cache(self, states: Tensor, rows: int) -> Any:
        """Return a prefix as the model's ordinary cache of some rows, which grows as text is generated."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._seen(states.detach(), rows)):
            cache.update(keys, values, number)
        return cache

    def _seen(self, states: Tensor, rows: int) -> Layers:
        states = states.to(self.model.device, self.model.dtype)
        return [(own[0].expand(rows, -1, -1, -1), own[1].expand(rows, -1, -1, -1)) for own in states]

    @contextmanager
    def _attending(self, seen: Layers) -> Iterator[None]:
        # Transformers' own checkpointing is for training mode, and would compute a layer again without the prefix.
        is_saving = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        with gradient_checkpointing() if is_saving else nullcontext(), attending_to(self.model, seen):
            yield

    def _positions(self, inputs: dict[str, Any], prefix: int, tokens: Tensor) -> dict[str, Any]:
        """Return position ids as if P tokens stood before each row's own, padding not counted.

        PEFT 0.21 shifts positions by P too. But where it is given none, it numbers left-padded rows with their padding,
        so that the distance between prefix and text depends on the other rows of the batch.
        """
        given = inputs.get("position_ids")
        mask = inputs.get("attention_mask")
        if given is not None:
            positions = given + prefix
        elif mask is not None and mask.ndim == 2:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0) + prefix
        else:
            positions = torch.arange(prefix, prefix + tokens.shape[1], device=tokens.device)[None]
        capacity, length = self.capacity(prefix), int(positions.max()) - prefix + 1
        if capacity is not None and length > capacity:
            raise PromptError(
                f"a prefix of {prefix} tokens leaves {capacity} positions of {self._name} to a text, and one has "
                f"{length}; cut the text or shorten the prefix"
            )
        return {"position_ids": positions, "use_cache": False}

    @torch.no_grad()
    def _check(self) -> bool:
        """Return whether the model answers as it should: see `_answers`; sets `is_causal` on the way."""
        try:
            return self._answers()
        except Exception:  # architectures without ordinary attention fail in ways of their own
            return False

    def _answers(self) -> bool:
        ids = self.ordinary_ids(6)
        plain, other = self._hidden(ids), self._hidden([*ids[:-1], ids[0]])
        seen_early = (plain - other)[:, :-1].abs().max()
        states = self.read(ids[:3])
        if seen_early > _SAME * plain.abs().max():
            # Nothing exact can be said of an encoder with a prefix, but with an empty one it is the plain model.
            rest, expected, states = ids, plain, states[:, :, :, :0]
        else:
            # A causal model that attends to a text's states has the text before it.
            self.is_causal = "position_ids" in inspect.signature(self.model.forward).parameters
            rest, expected = ids[3:], plain[:, 3:]
        inputs = {"input_ids": torch.tensor([rest], device=self.model.device)}
        return agree(self.run(states, inputs, body=True).last_hidden_state, expected, self._name)

    @torch.no_grad()
    def _hidden(self, token_ids: Sequence[int]) -> Tensor:
        """Return the last layer's hidden states `[1, L, d]`."""
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        hidden: Tensor = self.model.base_model(input_ids=ids).last_hidden_state
        return hidden
