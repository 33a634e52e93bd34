"""What stands in the rows of one batch of an encoder: cues in their prompt slots, and the batch laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cuecraft.backbone.base import ReadyPrompt
from cuecraft.backbone.cues import VectorTable
from cuecraft.task.rendering import Pieces


@dataclass(frozen=True, eq=False)
class Cues:
    """What stands in the prompt slot of each input of a run.

    Args:
        vectors: `[K, S, d]` K prompts.
        offsets: `[n_layers, S, d]` added to the hidden states entering each layer, for all K; None for nothing.
        states: `[n_layers, 2, n_kv_heads, P, head_dim]` keys and values that all tokens attend to; None for nothing.
    """

    vectors: Tensor
    offsets: Tensor | None = None
    states: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions that a cue is charged for, its prefix included."""
        return self.vectors.shape[1] + (0 if self.states is None else self.states.shape[3])

    def rows(self, chosen: Sequence[int]) -> RowCues:
        """Return the cues of a batch, given which of the K each row has."""
        count, size = len(chosen), self.vectors.shape[1]
        offsets = None if self.offsets is None else self.offsets.repeat(1, count, 1)
        states = None if self.states is None else self.states[:, :, None].expand(-1, -1, count, -1, -1, -1)
        return RowCues([size] * count, self.vectors[list(chosen)].flatten(0, 1), offsets, states)


@dataclass(frozen=True, eq=False)
class RowCues:
    """What stands in the prompt slot of each row of one batch.

    Args:
        sizes: `[b]` tokens of each row's cue; M in all.
        vectors: `[M, d]` one row's after another's.
        offsets: `[n_layers, M, d]` added to the hidden states entering each layer; None for nothing.
        states: `[n_layers, 2, b, n_kv_heads, P, head_dim]` keys and values that a row's tokens attend to; None for
            nothing.
    """

    sizes: Sequence[int]
    vectors: Tensor
    offsets: Tensor | None = None
    states: Tensor | None = None

    @classmethod
    def of(cls, prompts: Sequence[ReadyPrompt]) -> Self:
        """Return the cues of prompts with prefixes of one length, or without any."""
        table = VectorTable.of([prompt.vectors for prompt in prompts], [prompt.offsets for prompt in prompts])
        known = [prompt.states for prompt in prompts if prompt.states is not None]
        states = torch.stack(known, dim=2) if known else None
        return cls([len(prompt.vectors) for prompt in prompts], table.vectors, table.offsets, states)


@dataclass(frozen=True, eq=False)
class LaidOut:
    """One batch, laid out.

    Args:
        inputs: what the model is called with.
        text: `[b, L]` which positions hold text (neither padding nor cue).
        sizes: `[b]` tokens of each row's cue.
        change: what happens to the hidden states entering each layer; None for nothing.
        states: `[n_layers, 2, b, n_kv_heads, P, head_dim]` keys and values that all tokens attend to; None for nothing.
    """

    inputs: dict[str, Tensor]
    text: Tensor
    sizes: Sequence[int]
    change: Callable[[int, Tensor], Tensor] | None
    states: Tensor | None


def mask_slots(laid_out: LaidOut, pieces: Sequence[Pieces]) -> list[int]:
    """Return where each row's mask stands."""
    sizes = zip(pieces, laid_out.sizes, strict=True)
    return [piece.answer + (size if piece.answer >= len(piece.before) else 0) for piece, size in sizes]
