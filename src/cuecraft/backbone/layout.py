"""How the tokens of a cue pass are numbered, the trees that they make, and many prompts in one pass.

`MixedCausal` reads rows with a prompt of their own, of any kind and task. A text and its prompt are read in one piece;
several prompts over one text are branches behind it, so that it is read once. Where the prompt stands before the text,
what comes before the text was read when the prompt was made ready, and a row holds the text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cuecraft.backbone.attention import keeping
from cuecraft.backbone.base import Prompt, ReadyPrompt, Row
from cuecraft.backbone.budget import Budget
from cuecraft.backbone.columns import MixedReadout, readout
from cuecraft.backbone.cues import Past, VectorTable, padded
from cuecraft.backbone.hooks import adding, passing
from cuecraft.backbone.plan import CausalModel, nothing_between
from cuecraft.backbone.tree import CueTree, grow_tree
from cuecraft.task import Task
from cuecraft.task.batches import token_batches
from cuecraft.task.rendering import Pieces


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


@dataclass(frozen=True, eq=False)
class _Part:
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
class _Laid:
    """One row, laid out: what was read before it, and its new tokens: a text, and prompts that branch off behind it.

    Args:
        past: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of what was read; None for nothing.
        lead: ids that all of its prompts stand behind.
        parts: the prompts.
    """

    past: Tensor | None
    lead: tuple[int, ...]
    parts: tuple[_Part, ...]

    @property
    def nodes(self) -> int:
        """New tokens."""
        return len(self.lead) + sum(part.nodes for part in self.parts)

    @property
    def seen(self) -> int:
        """Tokens that were read before."""
        return 0 if self.past is None else self.past.shape[3]

    def starts(self) -> Iterator[tuple[int, _Part]]:
        """Yield where each prompt begins among the new tokens."""
        start = len(self.lead)
        for part in self.parts:
            yield start, part
            start += part.nodes


class MixedCausal(CausalModel):
    """A causal language model whose passes hold rows of many prompts."""

    @torch.no_grad()
    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `mixed_logits` takes it.

        Raises:
            PromptError: it does not fit the backbone or the task.
            TemplateError, LabelWordError: the task does not fit the backbone.
        """
        renderer = self.renderer(task)
        vectors = self._vectors(prompt)
        reads = readout(self.model, renderer.label_ids, prompt.head)
        found = ReadyPrompt(
            renderer,
            vectors,
            self._offsets(prompt, len(vectors)),
            self._states(prompt),
            prompt.head,
            reads=reads,
            branches=grow_tree(reads.beginnings) if reads.beginnings else None,
        )
        if found.states is not None and not len(vectors) and not renderer.has_tail:
            raise nothing_between(renderer)
        opening = renderer.opening_ids
        if opening is None or not self._shares_context or not (opening or found.length):
            return replace(found, shared=self._shared_opening(renderer))
        none = vectors.new_zeros(0, vectors.shape[1])
        states = self._opened(opening, found)
        return ReadyPrompt(renderer, none, None, None, prompt.head, states, reads, found.branches)

    def _opened(self, before: tuple[int, ...], prompt: ReadyPrompt) -> Tensor:
        """Return the keys and values of ids and a prompt behind them `[n_layers, 2, n_kv_heads, L, head_dim]`."""
        parts = [self.read_states(before)] if before else []
        parts += [] if prompt.states is None else [prompt.states]
        past = torch.cat(parts, dim=3) if parts else None
        if len(prompt.vectors):
            with keeping(self.model) as kept:
                self._run_rows([_Laid(past, (), (_Part(0, prompt, ()),))])
            new = torch.stack([torch.stack([part[0] for part in kept[layer]]) for layer in sorted(kept)])
            parts.append(new[:, :, :, : len(prompt.vectors)])
        return torch.cat(parts, dim=3)

    @torch.no_grad()
    def mixed_logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own; no gradient.

        Raises:
            PromptError: a prompt and its text are longer than the backbone's positions.
        """
        for prompt, piece in rows:
            prompt.renderer.check_length([piece], prompt.length)

        def run(budget: Budget) -> list[Tensor]:
            laid = self._laid(rows, budget)
            nodes = [row.nodes for row in laid]
            shares = [budget.charge(row.nodes, self._pass_bytes(row.seen, row.nodes)) for row in laid]
            found: dict[int, Tensor] = {}
            for batch in token_batches(nodes, budget, shares):
                own = [laid[n] for n in batch]
                found |= zip((part.number for row in own for part in row.parts), self._run_rows(own), strict=True)
            return [found[n][: prompt.num_classes] for n, (prompt, _) in enumerate(rows)]

        return self.within_memory(run)

    def _laid(self, rows: Sequence[Row], budget: Budget) -> list[_Laid]:
        """Lay rows out: those of one text together, as branches of it, where they are not too many.

        What is read apart instead: texts of too many prompts, and texts that a prefix stands behind.
        """
        found, apart = [], []
        together: dict[tuple[int, tuple[int, ...]], list[_Part]] = {}
        for number, (prompt, piece) in enumerate(rows):
            part = _Part(number, prompt, piece.after)
            if prompt.opening is not None:
                found.append(_Laid(prompt.opening, (), (part,)))
            elif prompt.states is not None and piece.before:
                apart.append((piece.before, part))
            elif prompt.states is not None:
                found.append(_Laid(prompt.states, (), (part,)))
            else:
                shared = 0 if prompt.shared is None else prompt.shared.shape[3]
                together.setdefault((shared, piece.before), []).append(part)
        for (shared, before), parts in together.items():
            row = _Laid(parts[0].prompt.shared, before[shared:], tuple(parts))
            if len(parts) == 1 or (before and row.nodes <= self._tree_nodes(budget, shared)):
                found.append(row)
            elif before:
                apart += [(before, part) for part in parts]
            else:
                found += [_Laid(None, (), (part,)) for part in parts]
        return found + self._behind(apart, budget)

    def _behind(self, parts: Sequence[tuple[tuple[int, ...], _Part]], budget: Budget) -> list[_Laid]:
        """Read texts apart, each once; return rows of the prompts behind them."""
        texts = list(dict.fromkeys(before for before, _ in parts))
        kept: dict[tuple[int, ...], Tensor] = {}
        for batch in token_batches([len(ids) for ids in texts], budget):
            own = [texts[n] for n in batch]
            kept |= zip(own, self._read(own).states(), strict=True)
        found = []
        for before, part in parts:
            past, lead = kept[before], before[:0]
            if part.prompt.states is not None:
                past = torch.cat([past, part.prompt.states], dim=3)
            elif not part.path:  # the text's last token is the answer slot
                past, lead = past[:, :, :, :-1], before[-1:]
            found.append(_Laid(past, lead, (part,)))
        return found

    def _run_rows(self, rows: Sequence[_Laid]) -> Tensor:
        """Run one pass; return class scores `[parts, C]` of all rows' parts, zeros behind a part's own classes."""
        width = max(row.nodes for row in rows)
        ids, slots, slot_rows, place = [], [], [], []
        for number, row in enumerate(rows):
            own = list(row.lead)
            for start, part in row.starts():
                branch, size = part.prompt.branches, len(part.prompt.vectors)
                own += [*[0] * size, *part.after, *(branch.codes.tolist() if branch else ())]
                place += [(number, start + n) for n in range(size)]
                end = start + part.path
                slots.append(
                    [end - 1 if part.path else len(row.lead) - 1, *(end + n for n in (branch.ends if branch else ()))]
                )
                slot_rows.append(number)
            ids.append(own + [0] * (width - len(own)))
        reads = max(map(len, slots))
        at = torch.tensor([own + own[:1] * (reads - len(own)) for own in slots], device=self.device)
        prompts = [part.prompt for row in rows for part in row.parts]
        inputs, change = self.embed(torch.tensor(ids)), None
        if place:
            where = torch.tensor(place, device=self.device).unbind(1)
            table = VectorTable.of([own.vectors for own in prompts], [own.offsets for own in prompts])
            inputs = inputs.index_put(where, table.vectors)
            change = None if table.offsets is None else adding(table.offsets, *where)
        mixed = MixedReadout(self.model, [prompt.reads for prompt in prompts])
        with mixed.reading(at, slot_rows) as scores, passing(change=change):
            logits = self._forward(inputs, *_seen(rows, width, self.device), self._past_of(rows)).logits
        return scores(logits)[0]

    def _past_of(self, rows: Sequence[_Laid]) -> Past:
        known = {n: row.past for n, row in enumerate(rows) if row.past is not None and row.seen}
        lengths = torch.tensor([row.seen for row in rows], device=self.device)
        return Past(padded(known, len(rows)) if known else [], lengths)


def _seen(rows: Sequence[_Laid], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
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
