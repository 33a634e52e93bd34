"""How the tokens of a cue pass are numbered, and the trees that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cuecraft.backbone.rendering import Pieces
from cuecraft.backbone.tree import CueTree, grow_tree


class Layout:
    """How the tokens of a cue pass are numbered.

    Codes from 0 on are rows of the table of vectors; negative codes are the row's own tokens.

    Args:
        cues: codes of each cue.
        words: ids of the tokens in beginnings of long label words.
        beginnings: of long label words, as ids; branches that grow after the answer slot.
        first_code: the first of `words` in the table.
        has_tails: whether ids stand after the cue.
    """

    def __init__(
        self,
        cues: Sequence[tuple[int, ...]],
        words: Sequence[int],
        beginnings: Sequence[tuple[int, ...]],
        first_code: int,
        has_tails: bool,
    ) -> None:
        codes = {token: first_code + n for n, token in enumerate(words)}
        self._cues = cues
        self._branches = ((), *(tuple(codes[token] for token in ids) for ids in beginnings))
        self._grown: dict[tuple[int, int, int], list[CueTree]] = {}
        #: Tokens of a kept context that are read again: 1 where without cue and tail nothing else would stand at the
        #: answer slot, else 0.
        self.lead = int(not all(cues) and not has_tails)

    def cost(self, width: int) -> int:
        """Return the nodes of all cues in one tree, at most, without lead."""
        return sum(len(cue) + width + len(self._branches) - 1 for cue in self._cues)

    def for_rows(self, tree: CueTree, firsts: Sequence[int]) -> CueTree:
        """Return a tree whose cues are, in each of some rows, those that many codes behind (`Rows.firsts`)."""
        if not firsts:
            return tree
        is_cue = (tree.codes >= 0) & (tree.codes <= max((code for cue in self._cues for code in cue), default=-1))
        return replace(tree, codes=tree.codes + torch.tensor(firsts)[:, None] * is_cue)

    def trees(self, width: int, lead: int, nodes: int) -> list[CueTree]:
        """Return trees of `nodes` nodes at most, of one cue at least, that hold all cues.

        Each cue has 1 + I ends, the answer slot first.

        Args:
            width: ids of the longest tail.
            lead: ids of the context, its last ones, that stand at the root.
            nodes: of one tree.
        """
        if (width, lead, nodes) not in self._grown:
            cost = max(map(len, self._cues)) + width + len(self._branches) - 1
            size = max(1, (nodes - lead) // max(1, cost))
            head, tail = (tuple(-1 - width - n for n in range(lead)), tuple(-1 - n for n in range(width)))
            self._grown[width, lead, nodes] = [
                grow_tree(
                    [(*head, *cue, *tail, *branch) for cue in self._cues[k : k + size] for branch in self._branches]
                )
                for k in range(0, len(self._cues), size)
            ]
        return self._grown[width, lead, nodes]


def own_tokens(pieces: Sequence[Pieces], width: int, lead: int) -> tuple[Tensor, Tensor]:
    """Return each row's own ids `[b, width + lead]`, tail and lead, and which are real.

    Both are padded on the left, so that the answer slot is the same node in every row.
    """
    ids = torch.zeros(len(pieces), width + lead, dtype=torch.long)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        for stop, own in ((width, piece.after), (width + lead, piece.before[max(0, len(piece.before) - lead) :])):
            ids[row, stop - len(own) : stop] = torch.tensor(own, dtype=torch.long)
            valid[row, stop - len(own) : stop] = True
    return ids, valid
