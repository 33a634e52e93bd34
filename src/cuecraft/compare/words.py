"""The words of the vocabulary that tuned vectors lie nearest to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone import AnyBackbone
from cuecraft.compare.schema import Neighbours
from cuecraft.prompts import AnyPrompt, DeepCue, SoftPrompt

NEAREST = 5


@torch.no_grad()
def nearest_words(prompt: AnyPrompt, backbone: AnyBackbone, count: int = NEAREST) -> list[Neighbours] | None:
    """Return the words nearest to each vector of a soft prompt, by cosine; None for a prompt without vectors.

    A tuned vector need not mean what its nearest word means: in a space of hundreds of dimensions a small step leaves
    the nearest word as it was and may change every answer.
    """
    base = prompt.base if isinstance(prompt, DeepCue) else prompt
    if not isinstance(base, SoftPrompt):
        return None
    cosines, ids = _cosines(base.embeddings, backbone.embedding_matrix()).topk(min(count, backbone.vocab_size))
    return [
        Neighbours(words=[str(backbone.tokenizer.decode([token])) for token in tokens], cosines=values)
        for tokens, values in zip(ids.tolist(), cosines.tolist(), strict=True)
    ]


def _cosines(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """Return the cosine `[S, V]` of each vector `[S, d]` to each row of the embedding matrix `[V, d]`."""
    unit = functional.normalize(vectors.float(), dim=1).to(embeddings.device)
    return unit @ functional.normalize(embeddings.float(), dim=1).T
