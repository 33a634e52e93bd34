"""How the new tokens of causal passes are laid out where texts bring options of their own: a tree for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cuecraft.backbone.columns import Columns
from cuecraft.backbone.plan import Past, Plan, Prompts, adding, at_slots
from cuecraft.backbone.query import Query
from cuecraft.backbone.tree import CueTree, grow_tree
from cuecraft.task.fitting import beginnings_of
from cuecraft.task.rendering import Pieces

Ids = tuple[int, ...]


class OwnTrees:
    """Trees of rows that have options of their own: a text's tail, prompts and the beginnings of its own options.

    Rows of a pass have different trees, padded on the right. Codes below M are rows of the table of vectors `[M, d]`;
    a code of M + t is token t.

    Args:
        prompts: the prompts.
        query: what is read, with the options of each text.
        columns: returns the columns of a query.
        embed: looks token ids up.
        owners: `[B]` the number of each text's own prompt; empty where all texts have all prompts.
        has_tails: whether ids stand after the prompts.
    """

    slot_bytes = 0

    def __init__(
        self,
        prompts: Prompts,
        query: Query,
        columns: Callable[[Query], Columns],
        embed: Callable[[Tensor], Tensor],
        owners: Sequence[int],
        has_tails: bool,
    ) -> None:
        self._prompts, self._query, self._columns, self._embed = prompts, query, columns, embed
        self._owners = owners
        self._beginnings = [beginnings_of(options) for options in query.own or ()]
        #: As of `SharedTrees`.
        self.lead = int(not all(prompts.codes) and not has_tails)

    def rank(self, row: int, piece: Pieces) -> int:
        """Return what rows of a pass should have in common: the nodes behind a prompt."""
        return len(piece.after) + len(self._beginnings[row])

    def cost(self, row: int, piece: Pieces) -> int:
        """Return the nodes of all prompts in one tree of a row, at most, without lead."""
        return sum(map(len, self._cues(row))) + len(self._cues(row)) * self.rank(row, piece)

    def trees(self, row: int, piece: Pieces, lead: int, nodes: int) -> list[CueTree]:
        """Return trees of `nodes` nodes at most, of one prompt at least, that hold all prompts.

        Args:
            row: number of the text that takes the most nodes.
            piece: that text.
            lead: ids of the context, its last ones, that stand at the root.
            nodes: of one tree.
        """
        cues = self._cues(row)
        size = max(1, (nodes - lead) // max(1, max(map(len, cues)) + self.rank(row, piece)))
        groups = [range(first, min(first + size, len(cues))) for first in range(0, len(cues), size)]
        return [replace(self._grown(row, piece, lead, group), prompts=group) for group in groups]

    def passes(
        self, trees: Sequence[CueTree], rows: Sequence[int], pieces: Sequence[Pieces], lead: int, past: Past
    ) -> Iterator[tuple[Plan, Columns]]:
        """Yield the passes of some groups of prompts over some texts, and what is read in each.

        Args:
            trees: of `trees`.
            rows: numbers of the texts.
            pieces: the texts.
            lead: as for `trees`.
            past: what stands before their new tokens.
        """
        columns = self._columns(self._query.of(rows))
        for group in trees:
            pairs = zip(rows, pieces, strict=True)
            grown = [self._grown(row, piece, lead, group.prompts) for row, piece in pairs]
            yield self._plan(grown, [len(self._beginnings[row]) for row in rows], len(group.prompts), past), columns

    def _cues(self, row: int) -> Sequence[Ids]:
        """Return the codes of the prompts of a text."""
        return [self._prompts.codes[self._owners[row]]] if self._owners else self._prompts.codes

    def _grown(self, row: int, piece: Pieces, lead: int, cues: range) -> CueTree:
        """Return the tree of one text with some prompts; of each prompt 1 + I ends, the answer slot first."""
        known = len(self._prompts.vectors)
        head, tail, *branches = (
            tuple(known + token for token in ids)
            for ids in (piece.before[max(0, len(piece.before) - lead) :], piece.after, (), *self._beginnings[row])
        )
        own = self._cues(row)
        return grow_tree([(*head, *own[n], *tail, *branch) for n in cues for branch in branches])

    def _plan(self, trees: Sequence[CueTree], beginnings: Sequence[int], prompts: int, past: Past) -> Plan:
        """Return the pass of one tree a row.

        Args:
            trees: of the rows.
            beginnings: of the options of each row.
            prompts: that stand in each tree.
            past: what stands before them.
        """
        table, device = self._prompts.vectors, self._prompts.vectors.device
        known, width, reads = len(table), max(len(tree.codes) for tree in trees), 1 + max(beginnings)
        codes = torch.full((len(trees), width), known)
        sees = torch.zeros(len(trees), width, width, dtype=torch.bool)
        valid = torch.zeros(len(trees), width, dtype=torch.bool)
        slots = []
        for row, (tree, count) in enumerate(zip(trees, beginnings, strict=True)):
            size = len(tree.codes)
            codes[row, :size], sees[row, :size, :size], valid[row, :size] = tree.codes, tree.ancestors, True
            ends = [tree.ends[first : first + 1 + count] for first in range(0, prompts * (1 + count), 1 + count)]
            slots.append([end for own in ends for end in (*own, *own[:1] * (reads - len(own)))])
        inputs, change = self._embed((codes - known).clamp(min=0)), None
        where = tuple(part.to(device) for part in torch.nonzero(valid & (codes < known), as_tuple=True))
        if len(where[0]):
            at = codes.to(device)[where]
            inputs = inputs.index_put(where, table[at])
            offsets = self._prompts.offsets
            change = None if offsets is None else adding(offsets[:, at], *where)
        pick = at_slots(torch.tensor(slots, device=device))
        return Plan(inputs=inputs, valid=valid.to(device), pick=pick, sees=sees.to(device), past=past, change=change)
