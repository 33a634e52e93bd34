"""The kinds of prompt: token ids of the vocabulary, or free vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from cuecraft.backbone import ClassHead


@dataclass(frozen=True, eq=False)
class HardPrompt:
    """A discrete prompt.

    Args:
        token_ids: `[S]` ids in the backbone's vocabulary.
        head: the class head found with it; sequence classification only.
    """

    token_ids: tuple[int, ...]
    head: ClassHead | None = None

    def __len__(self) -> int:
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
        head: the class head trained with it; sequence classification only.
    """

    embeddings: Tensor
    head: ClassHead | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the prompt's own vectors `[S, d]`."""
        return self.embeddings

    def text(self, tokenizer: Any) -> str:
        """Return a short description; vectors have no words of their own."""
        return f"{len(self)} tuned vectors of width {self.embeddings.shape[1]}"


AnyPrompt = HardPrompt | SoftPrompt


def nearest_tokens(vectors: Tensor, embeddings: Tensor, chunk: int = 16384) -> Tensor:
    """Return for each vector `[S, d]` the row `[S]` of the embedding matrix `[V, d]` nearest to it (Euclidean)."""
    best = torch.full((len(vectors),), torch.inf, dtype=vectors.dtype, device=vectors.device)
    ids = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(embeddings), chunk):
        distance, row = torch.cdist(vectors, embeddings[start : start + chunk]).min(dim=1)
        ids = torch.where(distance < best, row + start, ids)
        best = torch.minimum(best, distance)
    return ids
