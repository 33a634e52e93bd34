"""The kinds of prompt: token ids, free vectors, offsets on every layer, and keys and values of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from cuecraft.backbone import ClassHead, FeatureScale

#: The name of a class head's weight says which features it is for.
_HEAD_WEIGHTS = {FeatureScale.PLAIN: "head.weight", FeatureScale.UNIT: "head.unit_weight"}


@dataclass(frozen=True, eq=False)
class HardPrompt:
    """A discrete prompt.

    Args:
        token_ids: `[S]` ids in the backbone's vocabulary.
        head: the class head found with it; None to read label words.
    """

    token_ids: tuple[int, ...]
    head: ClassHead | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def offsets(self) -> None:
        """Nothing is added to hidden states."""

    @property
    def states(self) -> None:
        """No keys and values stand before it."""

    @property
    def size(self) -> int:
        """Tokens that were chosen."""
        return len(self.token_ids)

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the embeddings `[S, d]` of the prompt's tokens."""
        return embed(torch.tensor(self.token_ids, dtype=torch.long))

    def swapped(self, position: int, token_id: int) -> Self:
        """Return the prompt with another token at one position."""
        ids = list(self.token_ids)
        ids[position] = token_id
        return replace(self, token_ids=tuple(ids))

    def text(self, tokenizer: Any) -> str:
        """Return the prompt in words."""
        return str(tokenizer.decode(list(self.token_ids), clean_up_tokenization_spaces=False))


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A continuous prompt (Lester et al., EMNLP 2021, arXiv 2104.08691).

    Args:
        embeddings: `[S, d]` input embeddings.
        head: the class head trained with it; None to read label words.
    """

    embeddings: Tensor
    head: ClassHead | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def offsets(self) -> None:
        """Nothing is added to hidden states."""

    @property
    def states(self) -> None:
        """No keys and values stand before it."""

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        return self.embeddings.numel()

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the prompt's own vectors `[S, d]`."""
        return self.embeddings

    def text(self, tokenizer: Any) -> str:
        """Return a short description; vectors have no words of their own."""
        return f"{len(self)} tuned vectors of width {self.embeddings.shape[1]}"


@dataclass(frozen=True, eq=False)
class DeepCue:
    """A prompt whose positions are moved on the way into every layer.

    Kin: deep prompts of P-tuning v2 (Liu et al., ACL 2022, arXiv 2110.07602), interventions of ReFT (Wu et al., 2024,
    arXiv 2404.03592). With offsets of zero it is its base exactly.

    Args:
        base: the prompt that stands in the input, in words or in vectors; it brings the class head, if any.
        offsets: `[n_layers, S, d]` added to the hidden state entering each layer, at the prompt's positions only.
    """

    base: HardPrompt | SoftPrompt
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.base)

    @property
    def head(self) -> ClassHead | None:
        """The class head trained with it; None to read label words."""
        return self.base.head

    @property
    def states(self) -> None:
        """No keys and values stand before it."""

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        return self.offsets.numel()

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the base's vectors `[S, d]`."""
        return self.base.vectors(embed)

    def text(self, tokenizer: Any) -> str:
        """Return the base's words or description, and that offsets go with it."""
        return f"{self.base.text(tokenizer)} (+ offsets on {len(self.offsets)} layers)"


@dataclass(frozen=True, eq=False)
class PrefixPrompt:
    """Keys and values of every layer, which the tokens after them attend to as to P further tokens.

    Prefix-tuning (Li & Liang, ACL 2021, arXiv 2101.00190); deep prompts of P-tuning v2 (Liu et al., ACL 2022,
    arXiv 2110.07602). They stand in the prompt slot, in front of the base.

    Args:
        base: the prompt that stands in the input behind them, in words or in vectors, or empty; it brings the class
            head, if any.
        states: `[n_layers, 2, n_kv_heads, P, head_dim]` keys and values.
    """

    base: HardPrompt | SoftPrompt
    states: Tensor

    def __len__(self) -> int:
        return len(self.base) + self.states.shape[3]

    @property
    def head(self) -> ClassHead | None:
        """The class head trained with it; None to read label words."""
        return self.base.head

    @property
    def offsets(self) -> None:
        """Nothing is added to hidden states."""

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        return self.states.numel()

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the base's vectors `[S, d]`."""
        return self.base.vectors(embed)

    def text(self, tokenizer: Any) -> str:
        """Return the base's words or description, and that keys and values stand before it."""
        layers, _, _, length, _ = self.states.shape
        return f"(keys and values of {length} tokens on {layers} layers +) {self.base.text(tokenizer)}"


AnyPrompt = HardPrompt | SoftPrompt | DeepCue | PrefixPrompt


def with_others(text: str, count: int) -> str:
    """Return the words of the first of some prompts that answer together, and how many there are besides it."""
    return text if count == 1 else f"{text}, and {count - 1} more that answer with it"


def with_head(prompt: AnyPrompt, head: ClassHead | None) -> AnyPrompt:
    """Return the prompt with another class head."""
    if isinstance(prompt, DeepCue | PrefixPrompt):
        return replace(prompt, base=replace(prompt.base, head=head))
    return replace(prompt, head=head)


def prompt_tensors(prompt: AnyPrompt) -> dict[str, Tensor]:
    """Return all that a prompt consists of, by the names that an artifact stores it under."""
    base = prompt.base if isinstance(prompt, DeepCue | PrefixPrompt) else prompt
    if isinstance(base, HardPrompt):
        tensors = {"token_ids": torch.tensor(base.token_ids, dtype=torch.long)}
    else:
        tensors = {"embeddings": base.embeddings}
    if prompt.offsets is not None:
        tensors["offsets"] = prompt.offsets
    if prompt.states is not None:
        tensors["states"] = prompt.states
    return tensors | head_tensors(prompt.head)


def head_tensors(head: ClassHead | None) -> dict[str, Tensor]:
    """Return the tensors of a class head by name; nothing where there is none."""
    return {_HEAD_WEIGHTS[head.scale]: head.weight, "head.bias": head.bias} if head else {}


def stored_head(tensors: Mapping[str, Tensor]) -> ClassHead | None:
    """Return the class head among a prompt's tensors (`prompt_tensors`); KeyError where half of it is missing."""
    scale = next((scale for scale, name in _HEAD_WEIGHTS.items() if name in tensors), None)
    return None if scale is None else ClassHead(tensors[_HEAD_WEIGHTS[scale]], tensors["head.bias"], scale)


def nearest_tokens(vectors: Tensor, embeddings: Tensor, chunk: int = 16384) -> Tensor:
    """Return for each vector `[S, d]` the row `[S]` of the embedding matrix `[V, d]` nearest to it (Euclidean)."""
    best = torch.full((len(vectors),), torch.inf, dtype=vectors.dtype, device=vectors.device)
    ids = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(embeddings), chunk):
        distance, row = torch.cdist(vectors, embeddings[start : start + chunk]).min(dim=1)
        ids = torch.where(distance < best, row + start, ids)
        best = torch.minimum(best, distance)
    return ids
