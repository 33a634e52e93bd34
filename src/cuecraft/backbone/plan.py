"""What one forward pass is made of: prompts as a table of vectors, what stands before the new tokens, and the pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor

from cuecraft.backbone.prompt import ClassHead
from cuecraft.backbone.query import PlacedPrompt
from cuecraft.task.alignment import WordReading


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

    @property
    def width(self) -> int:
        """Tokens of the longest row, without the prefix."""
        return self.layers[0][0].shape[2] if self.layers else 0

    @property
    def prefix_length(self) -> int:
        """Tokens that the prefix stands for."""
        return 0 if self.prefix is None else self.prefix.shape[3]

    @property
    def seen(self) -> int:
        """Tokens of the longest row, the prefix included."""
        return self.width + self.prefix_length

    @classmethod
    def repeated(cls, state: Tensor, lengths: Tensor) -> Self:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` as those of several rows; nothing is copied.

        Args:
            state: the keys and values.
            lengths: `[b]` how many of the L each row sees.
        """
        return replace(cls.of(state[:, :, None].expand(-1, -1, len(lengths), -1, -1, -1)), lengths=lengths)

    @classmethod
    def of(cls, states: Tensor) -> Self:
        """Return keys and values `[n_layers, 2, b, n_kv_heads, W, head_dim]` of b rows, all seen."""
        lengths = torch.full((states.shape[2],), states.shape[4], device=states.device)
        return cls([(keys, values) for keys, values in states], lengths)

    def rows(self, start: int, stop: int) -> Self:
        """Return some of the rows, no wider than they need; nothing is copied."""
        lengths = self.lengths[start:stop]
        width = int(lengths.max())
        layers = [(k[start:stop, :, :width], v[start:stop, :, :width]) for k, v in self.layers]
        return type(self)(layers, lengths, self.prefix)

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """One forward pass, laid out: b rows of N new tokens, of which R slots are read.

    Args:
        inputs: `[b, N, d]` vectors of the new tokens.
        valid: `[b, N]` bool, false at padding.
        pick: returns the hidden states at the slots `[b, R, d]`, given those of all new tokens `[b, N, d]`.
        sees: which new tokens each new token may see, `[N, N]` bool, or `[b, N, N]` in each row; None for all.
        past: keys and values of what stands before; None for nothing.
        sees_past: `[N]` bool, which new tokens see what stands before; None for all.
        change: given a layer's number and the hidden states entering it, returns what enters instead; None for those.
        text: `[b, N]` which new tokens are neither padding nor prompt; None where nothing is pooled.
        words: `[b, R]` the slot of each word, or `UNREAD` or `CUT` (`cuecraft.task.alignment`); None where slots are no
            words.
        reading: what is read of a word.
    """

    inputs: Tensor
    valid: Tensor
    pick: Callable[[Tensor], Tensor]
    sees: Tensor | None = None
    past: Past | None = None
    sees_past: Tensor | None = None
    change: Callable[[int, Tensor], Tensor] | None = None
    text: Tensor | None = None
    words: Tensor | None = None
    reading: WordReading = "word"


def at_slots(slots: Tensor, rows: Sequence[int] | None = None) -> Callable[[Tensor], Tensor]:
    """Return a `Plan.pick` of slots `[b, R]`, which lie in some rows `[b]` of the pass; by default in all, in order."""
    numbers = torch.arange(len(slots)) if rows is None else torch.tensor(rows)
    return lambda hidden: hidden[numbers.to(hidden.device)[:, None], slots.to(hidden.device)]


def adding(offsets: Tensor, rows: Tensor, columns: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return a `Plan.change` that adds offsets `[n_layers, M, d]` at M places (row, column) of a batch."""
    return lambda layer, hidden: hidden.index_put((rows, columns), offsets[layer], accumulate=True)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as one table of vectors.

    Args:
        vectors: `[M, d]`.
        offsets: `[n_layers, M, d]` added to the hidden states entering each layer; None for nothing.
        codes: `[T]` the rows of the table that each prompt is.
        states: `[T]` keys and values `[n_layers, 2, n_kv_heads, P, head_dim]` in front of each; None for nothing.
        heads: `[T]` the class head of each; None for label words.
    """

    vectors: Tensor
    offsets: Tensor | None
    codes: Sequence[tuple[int, ...]]
    states: Sequence[Tensor | None]
    heads: Sequence[ClassHead | None]

    @classmethod
    def of(cls, prompts: Sequence[PlacedPrompt]) -> Self:
        """Return a table of prompts; one without offsets gets zeros where another has some."""
        vectors, offsets = _stacked([own.vectors for own in prompts], [own.offsets for own in prompts])
        ends = accumulate((len(own.vectors) for own in prompts), initial=0)
        codes = [tuple(range(start, stop)) for start, stop in pairwise(ends)]
        return cls(vectors, offsets, codes, [own.states for own in prompts], [own.head for own in prompts])

    @property
    def length(self) -> int:
        """Positions that the longest prompt takes, its prefix included."""
        return max(self.length_of(number) for number in range(len(self.codes)))

    def length_of(self, number: int) -> int:
        """Return the positions that one prompt takes, its prefix included."""
        states = self.states[number]
        return len(self.codes[number]) + (0 if states is None else states.shape[3])

    def swapped(self, positions: Sequence[int], vectors: Tensor) -> Self:
        """Return K prompts, each the first one with another vector `[K, d]` at one of its positions.

        What takes another's place gets the offsets of that place.
        """
        cue, count = self.codes[0], len(self.vectors)
        moved = None if self.offsets is None else self.offsets[:, [cue[at] for at in positions]]
        table, offsets = _stacked([self.vectors, vectors.to(self.vectors.dtype)], [self.offsets, moved])
        codes = [(*cue[:at], count + k, *cue[at + 1 :]) for k, at in enumerate(positions)]
        return type(self)(table, offsets, codes, [self.states[0]] * len(codes), [self.heads[0]] * len(codes))

    def with_words(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the table `[M + W, d]` with further vectors behind it, and its offsets."""
        return _stacked([self.vectors, vectors.to(self.vectors.dtype)], [self.offsets, None])

    def rows(self, owners: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what the prompts of b rows consist of, one row's behind another's.

        Vectors `[M, d]`, offsets `[n_layers, M, d]` or None, and states `[n_layers, 2, b, n_kv_heads, P, head_dim]` or
        None; states have to be as long as each other.
        """
        count, is_one = len(owners), len(set(owners)) == 1
        codes = [code for owner in owners for code in self.codes[owner]]
        offsets = self.offsets
        if offsets is not None:  # repeating keeps the order in which gradients are summed
            own = list(self.codes[owners[0]])
            offsets = offsets[:, own].repeat(1, count, 1) if is_one else offsets[:, codes]
        known = [own for own in (self.states[owner] for owner in owners) if own is not None]
        states = None
        if known:
            states = known[0][:, :, None].expand(-1, -1, count, -1, -1, -1) if is_one else torch.stack(known, dim=2)
        return self.vectors[codes], offsets, states


def _stacked(vectors: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Return vectors `[M, d]` and offsets `[n_layers, M, d]` of several parts; zeros for a part without offsets."""
    first = next((part for part in offsets if part is not None), None)
    if first is None:
        return torch.cat(list(vectors)), None
    filled = [
        first.new_zeros(first.shape[0], len(own), first.shape[2]) if part is None else part
        for own, part in zip(vectors, offsets, strict=True)
    ]
    return torch.cat(list(vectors)), torch.cat(filled, dim=1)


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
