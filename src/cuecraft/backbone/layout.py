"""How the tokens of a cue pass are numbered, and the trees that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cuecraft.backbone.base import Context
from cuecraft.backbone.rendering import Pieces
from cuecraft.backbone.tree import CueTree, grow_tree


@dataclass(frozen=True)
class Layout:
    """How the tokens of a cue pass are numbered.

    Codes from 0 on are rows of the table of vectors; negative codes are the row's own tokens.

    Args:
        lead: 1 where the context's last token is read again, because without cue and tail nothing else would
            stand at the answer slot; else 0.
        width: length of the longest tail (ids after the cue).
        cost: nodes that one cue of the longest length needs.
        words: ids of the tokens in beginnings of long label words.
        branches: the beginnings as codes; the first is empty, for the answer slot itself.
    """

    lead: int
    width: int
    cost: int
    words: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        context: Context,
        cues: Sequence[tuple[int, ...]],
        beginnings: Sequence[tuple[int, ...]],
        first_code: int,
    ) -> Layout:
        """Lay out cues over a context; codes of label words begin at `first_code`."""
        tails = [len(piece.after) for piece in context.pieces]
        lead = int(not all(cues) and not all(tails))
        words = tuple(sorted({token for ids in beginnings for token in ids}))
        codes = {token: first_code + n for n, token in enumerate(words)}
        branches = ((), *(tuple(codes[token] for token in ids) for ids in beginnings))
        cost = lead + max(map(len, cues)) + max(tails) + len(beginnings)
        return cls(lead, max(tails), cost, words, branches)

    def tree(self, cues: Sequence[tuple[int, ...]]) -> CueTree:
        """Grow the tree of some cues; each has 1 + I ends, the answer slot first."""
        head = (-1 - self.width,) * self.lead
        tail = tuple(-1 - n for n in range(self.width))
        return grow_tree([(*head, *cue, *tail, *branch) for cue in cues for branch in self.branches])

    def own_tokens(self, pieces: Sequence[Pieces]) -> tuple[Tensor, Tensor]:
        """Return each row's own ids `[b, width + lead]` and which are real.

        Tails are padded on the left, so that the answer slot is the same node in every row.
        """
        ids = torch.zeros(len(pieces), self.width + self.lead, dtype=torch.long)
        valid = torch.zeros_like(ids, dtype=torch.bool)
        for row, piece in enumerate(pieces):
            start = self.width - len(piece.after)
            own = (*piece.after, *piece.before[len(piece.before) - self.lead :])
            ids[row, start : start + len(own)] = torch.tensor(own, dtype=torch.long)
            valid[row, start : start + len(own)] = True
        return ids, valid
