"""How the new tokens of causal passes are laid out: one tree for all rows, or a tree of its own for each row.

`SharedTrees` lays the same prompts out behind every text, or one for each text where they are as long as each other.
`RowTree` holds one text with prompts of its own, of any kind and task: several of them are branches behind it, so that
it is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cuecraft.backbone.columns import Columns
from cuecraft.backbone.plan import Past, Plan, Prompts, adding, at_slots, padded
from cuecraft.backbone.query import ReadyPrompt
from cuecraft.backbone.tree import CueTree, grow_tree
from cuecraft.task.rendering import Pieces


class SharedTrees:
    """Trees of the same nodes in every row.

    Codes from 0 on are rows of the table of vectors; negative codes are the row's own tokens.

    Args:
        prompts: the prompts.
        columns: what is read; tokens that it grows are further branches.
        embed: looks token ids up.
        owners: `[B]` the number of each text's own prompt; empty where all texts have all prompts.
        has_tails: whether ids stand after the prompts.
    """

    def __init__(
        self,
        prompts: Prompts,
        columns: Columns,
        embed: Callable[[Tensor], Tensor],
        owners: Sequence[int],
        has_tails: bool,
    ) -> None:
        self._embed, self._columns = embed, columns
        words = sorted({token for ids in columns.beginnings for token in ids})
        codes = {token: len(prompts.vectors) + n for n, token in enumerate(words)}
        self._vectors, self._offsets = prompts.vectors, prompts.offsets
        if words:
            self._vectors, self._offsets = prompts.with_words(embed(torch.tensor(words)))
        self._cues = prompts.codes[:1] if owners else prompts.codes
        #: `[B]` by how much the codes of each text's own prompt lie behind those of the first one.
        self._firsts = [prompts.codes[owner][0] if prompts.codes[owner] else 0 for owner in owners]
        self._branches = ((), *(tuple(codes[token] for token in ids) for ids in columns.beginnings))
        self._words = len(grow_tree(columns.beginnings).codes) if columns.beginnings else 0
        self._grown: dict[tuple[int, int, int], list[CueTree]] = {}
        #: Tokens of a kept context that are read again: 1 where without prompt and tail nothing else would stand at
        #: the answer slot, else 0.
        self.lead = int(not all(self._cues) and not has_tails)

    @property
    def slot_bytes(self) -> int:
        """Bytes that reading one slot takes."""
        return self._columns.slot_bytes

    def rank(self, row: int, piece: Pieces) -> int:
        """Return what rows of a pass should have in common: the length of their tails."""
        return len(piece.after)

    def cost(self, row: int, piece: Pieces) -> int:
        """Return the nodes of all prompts in one tree, at most, without lead, behind the text of the longest tail."""
        width = len(piece.after)
        return sum(len(cue) + width + self._words for cue in self._cues)

    def trees(self, row: int, piece: Pieces, lead: int, nodes: int) -> list[CueTree]:
        """Return trees of `nodes` nodes at most, of one prompt at least, that hold all prompts.

        Each prompt has 1 + I ends, the answer slot first.

        Args:
            row: number of the text of the longest tail.
            piece: that text.
            lead: ids of the context, its last ones, that stand at the root.
            nodes: of one tree.
        """
        width = len(piece.after)
        if (width, lead, nodes) not in self._grown:
            cost = max(map(len, self._cues)) + width + self._words
            size = max(1, (nodes - lead) // max(1, cost))
            head, tail = (tuple(-1 - width - n for n in range(lead)), tuple(-1 - n for n in range(width)))
            self._grown[width, lead, nodes] = [
                grow_tree(
                    [(*head, *cue, *tail, *branch) for cue in self._cues[k : k + size] for branch in self._branches]
                )
                for k in range(0, len(self._cues), size)
            ]
        return self._grown[width, lead, nodes]

    def passes(
        self, trees: Sequence[CueTree], rows: Sequence[int], pieces: Sequence[Pieces], lead: int, past: Past
    ) -> Iterator[tuple[Plan, Columns]]:
        """Yield the passes of trees over some texts, and what is read in each.

        Args:
            trees: of `trees`.
            rows: numbers of the texts.
            pieces: the texts, the one of the longest tail first.
            lead: as for `trees`.
            past: what stands before their new tokens.
        """
        tokens = own_tokens(pieces, len(pieces[0].after), lead)
        for tree in trees:
            yield self._plan(tree, rows, tokens, past), self._columns.at(rows)

    def _plan(self, tree: CueTree, rows: Sequence[int], own: tuple[Tensor, Tensor], past: Past) -> Plan:
        """Return the pass of one tree over some texts, given the tokens of each (`own_tokens`)."""
        tree = self._of_rows(tree, rows)
        device = self._vectors.device
        own_ids, own_valid = (part.to(device) for part in own)
        codes = tree.codes.to(device)
        # A zero row stands for the vectors of a table that has none (no prompt, one-token label words).
        vectors = self._vectors if len(self._vectors) else self._vectors.new_zeros(1, self._vectors.shape[1])
        inputs = vectors[codes.clamp(min=0)].expand(len(own_ids), -1, -1).clone()  # some models scale it in place
        valid = torch.ones(inputs.shape[:2], dtype=torch.bool, device=device)
        if own_ids.shape[1]:
            tokens = codes if codes.ndim == 1 else codes[0]  # of the rows' own ones the numbers are the same in all
            is_own, at = tokens < 0, (-1 - tokens).clamp(min=0)
            inputs = torch.where(is_own[None, :, None], self._embed(own_ids)[:, at], inputs)
            valid = torch.where(is_own[None], own_valid[:, at], valid)
        slots = torch.tensor(tree.ends, device=device).expand(len(own_ids), -1)
        change = self._change(codes)
        return Plan(inputs=inputs, valid=valid, pick=at_slots(slots), sees=tree.ancestors, past=past, change=change)

    def _of_rows(self, tree: CueTree, rows: Sequence[int]) -> CueTree:
        """Return a tree whose prompt is, in each of some texts, the text's own."""
        if not self._firsts:
            return tree
        is_cue = (tree.codes >= 0) & (tree.codes <= max((code for cue in self._cues for code in cue), default=-1))
        return replace(tree, codes=tree.codes + torch.tensor([self._firsts[row] for row in rows])[:, None] * is_cue)

    def _change(self, codes: Tensor) -> Callable[[int, Tensor], Tensor] | None:
        """Return a `Plan.change`: nodes `[..., N]` of the table get their offsets."""
        if self._offsets is None or not self._offsets.shape[1]:
            return None
        offsets = self._offsets[:, codes.clamp(min=0)] * (codes >= 0)[..., None].to(self._offsets.dtype)
        return lambda layer, hidden: hidden + offsets[layer]


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


@dataclass(frozen=True, eq=False)
class Branch:
    """One prompt of a row, and what stands behind it.

    Args:
        number: which of the rows that were asked for it answers.
        prompt: the prompt.
        after: ids after it.
    """

    number: int
    prompt: ReadyPrompt
    after: tuple[int, ...]

    @property
    def path(self) -> int:
        """New tokens up to the answer slot."""
        return len(self.prompt.vectors) + len(self.after)

    @property
    def nodes(self) -> int:
        """New tokens."""
        return self.path + (0 if self.prompt.branches is None else len(self.prompt.branches.codes))


@dataclass(frozen=True, eq=False)
class RowTree:
    """One row, laid out: what was read before it, and its new tokens: a text, and prompts that branch off behind it.

    Args:
        past: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of what was read; None for nothing.
        lead: ids that all of its prompts stand behind.
        parts: the prompts.
    """

    past: Tensor | None
    lead: tuple[int, ...]
    parts: tuple[Branch, ...]

    @property
    def nodes(self) -> int:
        """New tokens."""
        return len(self.lead) + sum(part.nodes for part in self.parts)

    @property
    def seen(self) -> int:
        """Tokens that were read before."""
        return 0 if self.past is None else self.past.shape[3]

    def starts(self) -> Iterator[tuple[int, Branch]]:
        """Yield where each prompt begins among the new tokens."""
        start = len(self.lead)
        for part in self.parts:
            yield start, part
            start += part.nodes


def rows_plan(rows: Sequence[RowTree], embed: Callable[[Tensor], Tensor], device: torch.device) -> Plan:
    """Return the pass of some rows; its slots are those of their branches, `[branches, R]`."""
    width = max(row.nodes for row in rows)
    ids, slots, slot_rows, place = [], [], [], []
    for number, row in enumerate(rows):
        own = list(row.lead)
        for start, part in row.starts():
            branch, size = part.prompt.branches, len(part.prompt.vectors)
            own += [*[0] * size, *part.after, *(branch.codes.tolist() if branch else ())]
            place += [(number, start + n) for n in range(size)]
            end = start + part.path
            answer = end - 1 if part.path else len(row.lead) - 1
            slots.append([answer, *(end + n for n in (branch.ends if branch else ()))])
            slot_rows.append(number)
        ids.append(own + [0] * (width - len(own)))
    reads = max(map(len, slots))
    at = torch.tensor([own + own[:1] * (reads - len(own)) for own in slots], device=device)
    inputs, change = embed(torch.tensor(ids)), None
    if place:
        where = torch.tensor(place, device=device).unbind(1)
        table = Prompts.of([part.prompt for row in rows for part in row.parts])
        inputs = inputs.index_put(where, table.vectors)
        change = None if table.offsets is None else adding(table.offsets, *where)
    known = {n: row.past for n, row in enumerate(rows) if row.past is not None and row.seen}
    lengths = torch.tensor([row.seen for row in rows], device=device)
    past = Past(padded(known, len(rows)) if known else [], lengths)
    sees, valid = _seen(rows, width, device)
    return Plan(inputs=inputs, valid=valid, pick=at_slots(at, slot_rows), sees=sees, past=past, change=change)


def _seen(rows: Sequence[RowTree], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which new tokens each new token may see `[b, N, N]`, and which are real `[b, N]`."""
    ancestors = torch.ones(width, width, dtype=torch.bool).tril().expand(len(rows), -1, -1)
    if any(len(row.parts) > 1 or row.parts[0].prompt.branches is not None for row in rows):
        ancestors = ancestors.clone()
        for own, row in zip(ancestors, rows, strict=True):
            for start, part in row.starts():
                end, stop = start + part.path, start + part.nodes
                own[start:stop, len(row.lead) : start] = False  # the prompts before it
                if part.prompt.branches is not None:
                    own[end:stop, end:stop] = part.prompt.branches.ancestors
    nodes = torch.tensor([row.nodes for row in rows])
    return ancestors.to(device), (torch.arange(width) < nodes[:, None]).to(device)
