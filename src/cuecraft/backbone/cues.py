"""What a pass of a causal model is made of: the cues, their vectors, and what stands before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cuecraft.backbone.base import ClassHead
from cuecraft.task.rendering import Pieces


@dataclass(frozen=True, eq=False)
class Cues:
    """Cues that are scored together.

    Args:
        codes: `[K]` rows of the table of vectors.
        states: keys and values of a prefix that stands before each of them; None for nothing.
        head: a class head in place of label words.
    """

    codes: Sequence[tuple[int, ...]]
    states: Tensor | None
    head: ClassHead | None

    @property
    def length(self) -> int:
        """Positions that the longest cue takes, its prefix included."""
        return max(map(len, self.codes)) + (0 if self.states is None else self.states.shape[3])


@dataclass(frozen=True, eq=False)
class Rows:
    """What a pass reads of some texts.

    Args:
        pieces: `[B]` token ids of each text.
        states: `[B]` what was kept of the ids before the prompt, as in `Context`.
        firsts: `[B]` by how much the codes of each text's own cue lie behind those of the first cue; empty where all
            texts have the same cues.
        opening: keys and values of what all begin with, as in `Context`.
    """

    pieces: Sequence[Pieces]
    states: Sequence[Tensor | None]
    firsts: Sequence[int] = ()
    opening: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Rows:
        """Return some of the texts; nothing is copied."""
        firsts = [self.firsts[row] for row in rows] if self.firsts else ()
        return Rows([self.pieces[row] for row in rows], [self.states[row] for row in rows], firsts, self.opening)


@dataclass(frozen=True, eq=False)
class Past:
    """Keys and values of what stands before the new tokens of a pass.

    Args:
        layers: for each layer keys and values `[b, n_kv_heads, W, head_dim]`, right-padded; empty for nothing.
        lengths: `[b]` how many of the W are seen.
        prefix: `[n_layers, 2, n_kv_heads, P, head_dim]` that stand behind them in each row; None for nothing.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    lengths: Tensor
    prefix: Tensor | None = None

    @cached_property
    def width(self) -> int:
        """Tokens of the longest row, without the prefix."""
        return int(self.lengths.max()) if self.layers else 0

    @property
    def prefix_length(self) -> int:
        """Tokens that the prefix stands for."""
        return 0 if self.prefix is None else self.prefix.shape[3]

    @property
    def seen(self) -> int:
        """Tokens of the longest row, the prefix included."""
        return self.width + self.prefix_length

    @classmethod
    def repeated(cls, state: Tensor, lengths: Tensor) -> Past:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` as those of several rows; nothing is copied.

        Args:
            state: the keys and values.
            lengths: `[b]` how many of the L each row sees.
        """
        rows = state[:, :, None].expand(-1, -1, len(lengths), -1, -1, -1)
        return cls([(keys, values) for keys, values in rows], lengths)

    def rows(self, start: int, stop: int) -> Past:
        """Return some of the rows, no wider than they need; nothing is copied."""
        lengths = self.lengths[start:stop]
        width = int(lengths.max())
        layers = [(k[start:stop, :, :width], v[start:stop, :, :width]) for k, v in self.layers]
        return Past(layers, lengths, self.prefix)

    def with_prefix(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Return keys and values `[b, n_kv_heads, W + P, head_dim]`."""
        if self.prefix is None:
            return self.layers
        rows = [part[:, None].expand(-1, len(self.lengths), -1, -1, -1) for part in self.prefix]
        if not self.layers:
            return [(keys, values) for keys, values in rows]
        pairs = zip(self.layers, rows, strict=True)
        return [(torch.cat([k, own[0]], dim=2), torch.cat([v, own[1]], dim=2)) for (k, v), own in pairs]

    def states(self) -> list[Tensor]:
        """Return a copy of each row `[n_layers, 2, n_kv_heads, length, head_dim]`."""
        return [
            torch.stack([torch.stack([k[row, :, :length], v[row, :, :length]]) for k, v in self.layers])
            for row, length in enumerate(self.lengths.tolist())
        ]


@dataclass(frozen=True, eq=False)
class VectorTable:
    """The vectors that the nodes of a tree refer to.

    Args:
        vectors: `[M, d]`.
        offsets: `[n_layers, M, d]` added to the hidden states entering each layer; None for nothing.
    """

    vectors: Tensor
    offsets: Tensor | None

    @classmethod
    def of(cls, vectors: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> VectorTable:
        """Stack parts; a part without offsets gets zeros where another has some."""
        first = next((part for part in offsets if part is not None), None)
        if first is None:
            return cls(torch.cat(list(vectors)), None)
        filled = [
            first.new_zeros(first.shape[0], len(own), first.shape[2]) if part is None else part
            for own, part in zip(vectors, offsets, strict=True)
        ]
        return cls(torch.cat(list(vectors)), torch.cat(filled, dim=1))

    def extended(self, vectors: Tensor) -> VectorTable:
        """Return the table with more rows, without offsets."""
        return self.of([self.vectors, vectors.to(self.vectors.dtype)], [self.offsets, None])


def padded(states: Mapping[int, Tensor], rows: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer keys and values `[rows, n_kv_heads, W, head_dim]` of some rows, zeros at the others.

    Args:
        states: row -> `[n_layers, 2, n_kv_heads, length, head_dim]`; one at least.
        rows: how many rows there are.
    """
    layers, two, heads, _, size = next(iter(states.values())).shape
    width = max(state.shape[3] for state in states.values())
    joined = next(iter(states.values())).new_zeros(layers, two, rows, heads, width, size)
    for row, state in states.items():
        joined[:, :, row, :, : state.shape[3]] = state
    return [(keys, values) for keys, values in joined]
