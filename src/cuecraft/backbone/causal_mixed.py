"""Causal language models, many prompts in one pass: each row a text with a prompt of its own, of any kind and task.

A row is read in one piece, text and prompt, unless its text stands in other rows too: such a text is read once, and
its rows hold the prompts alone. Where the prompt stands before the text, all that comes before the text is the same
for every request: it was read when the prompt was made ready, and a row holds the text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cuecraft.backbone.attention import keeping
from cuecraft.backbone.base import Prompt, ReadyPrompt, Row
from cuecraft.backbone.batching import Budget, token_batches
from cuecraft.backbone.causal_pass import CausalModel, nothing_between
from cuecraft.backbone.layers import adding, entering
from cuecraft.backbone.past import Past, VectorTable, padded
from cuecraft.backbone.readout import MixedReadout, readout
from cuecraft.backbone.tree import grow_tree
from cuecraft.task import Task


@dataclass(frozen=True, eq=False)
class _Laid:
    """One row, laid out: what was read before it, and its new tokens.

    Args:
        prompt: its prompt.
        past: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of what was read; None for nothing.
        lead: ids before the prompt that were not.
        after: ids after the prompt.
    """

    prompt: ReadyPrompt
    past: Tensor | None
    lead: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def path(self) -> int:
        """New tokens up to the answer slot."""
        return len(self.lead) + len(self.prompt.vectors) + len(self.after)

    @property
    def nodes(self) -> int:
        """New tokens."""
        return self.path + (0 if self.prompt.branches is None else len(self.prompt.branches.codes))

    @property
    def seen(self) -> int:
        """Tokens that were read before."""
        return 0 if self.past is None else self.past.shape[3]


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
            return found
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
                self._run_rows([_Laid(prompt, past, (), ())])
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
            kept = self._shared_texts(rows, budget)
            laid = [self._laid(row, kept) for row in rows]
            costs = [budget.charge(row.nodes, self._pass_bytes(row.seen, row.nodes)) for row in laid]
            found: dict[int, Tensor] = {}
            for batch in token_batches(costs, budget.tokens):
                found |= zip(batch, self._run_rows([laid[n] for n in batch]), strict=True)
            return [found[n][: rows[n][0].num_classes] for n in range(len(rows))]

        return self.within_memory(run)

    def _shared_texts(self, rows: Sequence[Row], budget: Budget) -> dict[tuple[int, ...], Tensor]:
        """Read what is wanted apart: ids before the prompt that several rows share, or that a prefix stands behind."""
        unread = [(prompt, piece.before) for prompt, piece in rows if prompt.opening is None and piece.before]
        often = Counter(before for _, before in unread)
        apart = [before for prompt, before in unread if often[before] > 1 or prompt.states is not None]
        texts = list(dict.fromkeys(apart))
        kept: dict[tuple[int, ...], Tensor] = {}
        for batch in token_batches([len(ids) for ids in texts], budget.tokens):
            own = [texts[n] for n in batch]
            kept |= zip(own, self._read(own).states(), strict=True)
        return kept

    def _laid(self, row: Row, kept: Mapping[tuple[int, ...], Tensor]) -> _Laid:
        prompt, piece = row
        if prompt.opening is not None:
            return _Laid(prompt, prompt.opening, (), piece.after)
        past = kept.get(piece.before)
        lead = () if past is not None else piece.before
        if past is not None and not (len(prompt.vectors) or piece.after):  # the text's last token is the answer slot
            past, lead = past[:, :, :, :-1], piece.before[-1:]
        if prompt.states is not None:
            past = prompt.states if past is None else torch.cat([past, prompt.states], dim=3)
        return _Laid(prompt, past, lead, piece.after)

    def _run_rows(self, rows: Sequence[_Laid]) -> Tensor:
        """Run one pass; return class scores `[b, C]`, zeros behind a row's own classes."""
        width = max(row.nodes for row in rows)
        ids, slots = [], []
        for row in rows:
            branch = row.prompt.branches
            own = [*row.lead, *[0] * len(row.prompt.vectors), *row.after, *(branch.codes.tolist() if branch else ())]
            ids.append(own + [0] * (width - len(own)))
            slots.append([row.path - 1, *(row.path + end for end in (branch.ends if branch else ()))])
        reads = max(map(len, slots))
        at = torch.tensor([own + own[:1] * (reads - len(own)) for own in slots], device=self.device)
        place = [
            (n, column)
            for n, row in enumerate(rows)
            for column in range(len(row.lead), len(row.lead) + len(row.prompt.vectors))
        ]
        inputs = self.embed(torch.tensor(ids))
        change = None
        if place:
            at_rows, at_columns = torch.tensor(place, device=self.device).unbind(1)
            prompts = [row.prompt for row in rows]
            table = VectorTable.of([own.vectors for own in prompts], [own.offsets for own in prompts])
            inputs = inputs.index_put((at_rows, at_columns), table.vectors)
            change = None if table.offsets is None else adding(table.offsets, at_rows, at_columns)
        mixed = MixedReadout(self.model, [row.prompt.reads for row in rows])
        with mixed.reading(at), entering(self.layers if change else (), change):
            logits = self._forward(inputs, *_seen(rows, width, self.device), self._past_of(rows)).logits
        return mixed.scores(logits)[0]

    def _past_of(self, rows: Sequence[_Laid]) -> Past:
        known = {n: row.past for n, row in enumerate(rows) if row.past is not None and row.seen}
        lengths = torch.tensor([row.seen for row in rows], device=self.device)
        return Past(padded(known, len(rows)) if known else [], lengths)


def _seen(rows: Sequence[_Laid], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which new tokens each new token may see `[b, N, N]`, and which are real `[b, N]`."""
    ancestors = torch.ones(width, width, dtype=torch.bool).tril().expand(len(rows), -1, -1)
    if any(row.prompt.branches is not None for row in rows):
        ancestors = ancestors.clone()
        for own, row in zip(ancestors, rows, strict=True):
            if row.prompt.branches is not None:
                own[row.path : row.nodes, row.path : row.nodes] = row.prompt.branches.ancestors
    nodes = torch.tensor([row.nodes for row in rows])
    return ancestors.to(device), (torch.arange(width) < nodes[:, None]).to(device)
