"""Prompts: token ids or vectors in the input, offsets on every layer, keys and values of every layer, a class head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

PromptKind = Literal["hard", "soft", "deep", "prefix"]


class FeatureScale(StrEnum):
    """What becomes of features before a class head reads them."""

    PLAIN = "plain"  # as they are
    UNIT = "unit"  # divided by their Euclidean length


#: The name of a class head's weight says which features it is for.
_HEAD_WEIGHTS = {FeatureScale.PLAIN: "head.weight", FeatureScale.UNIT: "head.unit_weight"}


@dataclass(frozen=True, eq=False)
class ClassHead:
    """A read-out of features in place of label words: ``scaled(features) @ weight.T + bias``.

    Args:
        weight: `[O, d]`.
        bias: `[O]`.
        scale: what becomes of the features before.
    """

    weight: Tensor
    bias: Tensor
    scale: FeatureScale = FeatureScale.PLAIN

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names that an artifact stores them under."""
        return {_HEAD_WEIGHTS[self.scale]: self.weight, "head.bias": self.bias}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassHead | None:
        """Return the class head among a prompt's tensors; KeyError where it is not whole."""
        scale = next((scale for scale, name in _HEAD_WEIGHTS.items() if name in tensors), None)
        if scale is None and "head.bias" not in tensors:
            return None
        weight, bias = tensors[_HEAD_WEIGHTS[scale or FeatureScale.PLAIN]], tensors["head.bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
            raise KeyError(f"a class head of {weight.dtype} {list(weight.shape)} and {bias.dtype} {list(bias.shape)}")
        return cls(weight, bias, scale or FeatureScale.PLAIN)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What stands in the prompt slot.

    Args:
        tokens: `[S]` token ids, of a prompt in words; or `[S, d]` input embeddings (Lester et al., EMNLP 2021, arXiv
            2104.08691). May be empty where keys and values stand before them.
        offsets: `[n_layers, S, d]` added to the hidden state entering each layer, at these tokens' positions only.
            Related: deep prompts of P-tuning v2 (Liu et al., ACL 2022, arXiv 2110.07602), interventions of ReFT (Wu et
            al., 2024, arXiv 2404.03592). With zeros it is the prompt without them. None for nothing.
        states: `[n_layers, 2, n_kv_heads, P, head_dim]` keys and values of every layer in front of the tokens, which
            all behind them attend to as to P further tokens: prefix-tuning (Li & Liang, ACL 2021, arXiv 2101.00190).
            None for nothing.
        head: the class head that answers, in place of label words; None to read label words.
    """

    tokens: tuple[int, ...] | Tensor
    offsets: Tensor | None = None
    states: Tensor | None = None
    head: ClassHead | None = None

    def __len__(self) -> int:
        return len(self.tokens) + (0 if self.states is None else self.states.shape[3])

    @property
    def kind(self) -> PromptKind:
        """What was tuned, in a word."""
        if self.states is not None:
            return "prefix"
        if self.offsets is not None:
            return "deep"
        return "soft" if isinstance(self.tokens, Tensor) else "hard"

    @property
    def base(self) -> Prompt:
        """The prompt without offsets, keys and values."""
        return replace(self, offsets=None, states=None)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids `[S]` of a prompt in words."""
        assert not isinstance(self.tokens, Tensor)
        return self.tokens

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings `[S, d]` of a prompt in vectors."""
        assert isinstance(self.tokens, Tensor)
        return self.tokens

    @property
    def size(self) -> int:
        """Numbers that were trained, or tokens that were chosen."""
        for tensor in (self.states, self.offsets):
            if tensor is not None:
                return tensor.numel()
        return self.tokens.numel() if isinstance(self.tokens, Tensor) else len(self.tokens)

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the input embeddings `[S, d]`; `embed` looks token ids up."""
        return self.tokens if isinstance(self.tokens, Tensor) else embed(torch.tensor(self.tokens, dtype=torch.long))

    def swapped(self, position: int, token_id: int) -> Prompt:
        """Return a prompt in words with another token at one position."""
        ids = list(self.token_ids)
        ids[position] = token_id
        return replace(self, tokens=tuple(ids))

    def with_head(self, head: ClassHead | None) -> Prompt:
        """Return the prompt with another class head."""
        return replace(self, head=head)

    def mapped(self, function: Callable[..., Tensor], *others: Prompt) -> Prompt:
        """Return the prompt whose tensors are a function of its own and of those of others; token ids stay."""

        def of(own: Any, name: str) -> Any:
            tensor = getattr(own, name)
            parts = [getattr(other if own is self else other.head, name) for other in others]
            return function(tensor, *parts) if isinstance(tensor, Tensor) else tensor

        tokens, offsets, states = (of(self, name) for name in ("tokens", "offsets", "states"))
        head = self.head and replace(self.head, weight=of(self.head, "weight"), bias=of(self.head, "bias"))
        return Prompt(tokens, offsets, states, head)

    def text(self, tokenizer: Any) -> str:
        """Return the prompt in words; of tensors, which have none, a short description."""
        if isinstance(self.tokens, Tensor):
            text = f"{len(self.tokens)} tuned vectors of width {self.tokens.shape[1]}"
        else:
            text = str(tokenizer.decode(list(self.tokens), clean_up_tokenization_spaces=False))
        if self.offsets is not None:
            text = f"{text} (+ offsets on {len(self.offsets)} layers)"
        if self.states is not None:
            layers, _, _, length, _ = self.states.shape
            text = f"(keys and values of {length} tokens on {layers} layers +) {text}"
        return text

    def tensors(self) -> dict[str, Tensor]:
        """Return all that it consists of, by the names that an artifact stores it under."""
        if isinstance(self.tokens, Tensor):
            found = {"embeddings": self.tokens}
        else:
            found = {"token_ids": torch.tensor(self.tokens, dtype=torch.long)}
        parts = {"offsets": self.offsets, "states": self.states}
        found |= {name: tensor for name, tensor in parts.items() if tensor is not None}
        return found | (self.head.tensors() if self.head else {})

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Prompt:
        """Return the prompt that consists of tensors; KeyError where one is missing, or is none of a prompt."""
        ids = tensors.get("token_ids")
        if ids is not None and (ids.ndim != 1 or ids.dtype != torch.long):
            raise KeyError(f"token_ids of {ids.dtype} {list(ids.shape)}")
        tokens = tensors["embeddings"] if ids is None else tuple(ids.tolist())
        return cls(tokens, tensors.get("offsets"), tensors.get("states"), ClassHead.of_tensors(tensors))


def HardPrompt(token_ids: tuple[int, ...], head: ClassHead | None = None) -> Prompt:  # noqa: N802  # documented so
    """Return a prompt in words: `[S]` ids in the backbone's vocabulary."""
    return Prompt(token_ids, head=head)


def SoftPrompt(embeddings: Tensor, head: ClassHead | None = None) -> Prompt:  # noqa: N802
    """Return a prompt in vectors: `[S, d]` input embeddings."""
    return Prompt(embeddings, head=head)


def DeepCue(base: Prompt, offsets: Tensor) -> Prompt:  # noqa: N802
    """Return a prompt with offsets `[n_layers, S, d]`; the class head, if any, is the base's."""
    return replace(base, offsets=offsets)


def PrefixPrompt(base: Prompt, states: Tensor) -> Prompt:  # noqa: N802
    """Return a prompt behind keys and values `[n_layers, 2, n_kv_heads, P, head_dim]`; the class head is the base's."""
    return replace(base, states=states)


def with_others(text: str, count: int) -> str:
    """Return the words of the first of some prompts that answer together, and how many there are besides it."""
    return text if count == 1 else f"{text}, and {count - 1} more that answer with it"


def nearest_tokens(vectors: Tensor, embeddings: Tensor, chunk: int = 16384) -> Tensor:
    """Return for each vector `[S, d]` the row `[S]` of the embedding matrix `[V, d]` nearest to it (Euclidean)."""
    best = torch.full((len(vectors),), torch.inf, dtype=vectors.dtype, device=vectors.device)
    ids = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(embeddings), chunk):
        distance, row = torch.cdist(vectors, embeddings[start : start + chunk]).min(dim=1)
        ids = torch.where(distance < best, row + start, ids)
        best = torch.minimum(best, distance)
    return ids
