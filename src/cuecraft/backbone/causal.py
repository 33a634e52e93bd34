"""Causal language models: text first, cue last, contexts kept as keys and values.

Tokens after the text do not change the text's keys and values, so these are computed once for each example; every
later pass costs only the tokens from the prompt on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.attention import keeping
from cuecraft.backbone.budget import Budget, memory_of, restore_order, same_width
from cuecraft.backbone.columns import columns_of, row_columns
from cuecraft.backbone.decoder import CausalModel
from cuecraft.backbone.layout import Branch, RowTree, SharedTrees, rows_plan
from cuecraft.backbone.own_trees import OwnTrees
from cuecraft.backbone.plan import Prompts
from cuecraft.backbone.prompt import Prompt
from cuecraft.backbone.query import FEATURES, Context, Query, ReadyPrompt, Row, Rows
from cuecraft.core.deadline import check_time
from cuecraft.core.errors import BackboneError, DataError, PromptError
from cuecraft.task import Example, Task
from cuecraft.task.batches import padding_share, token_batches
from cuecraft.task.rendering import Renderer


class CausalBackbone(CausalModel):
    """A decoder-only language model that answers with its next word.

    Args:
        model: an ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
        budget: what one pass may take; None for the default of the model's device.
        context_bytes: bytes of keys and values to keep over all contexts in use; beyond that they are computed again
            by each pass. None for a quarter of the device's memory. May be set later.
        shares_context: what an earlier check of the same model found; None to check now.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        fingerprint: Callable[[], str],
        budget: Budget | None = None,
        context_bytes: int | None = None,
        shares_context: bool | None = None,
    ) -> None:
        super().__init__(model, tokenizer, name, fingerprint, budget, shares_context)
        self.context_bytes = memory_of(self.device) // 4 if context_bytes is None else context_bytes
        self._kept_bytes = 0
        self._counting = threading.RLock()  # of `_kept_bytes`; again by its holder where garbage is collected meanwhile

    @torch.no_grad()
    def _read_ahead(self, examples: Sequence[Example], renderer: Renderer, keep_bytes: int | None) -> Context:
        """Render the examples and keep the keys and values of what stands before the prompt.

        Identical texts are read once, and so is what all texts of a task begin with. What would go beyond
        `context_bytes`, over all contexts of this backbone that are still in use, or beyond `keep_bytes` for this one,
        is not kept and read again by each pass; 0 suits texts that one pass reads and no other.
        """
        pieces = tuple(renderer.render(examples))
        renderer.check_length(pieces, 0)
        has_tail = any(piece.after for piece in pieces)
        for row, piece in enumerate(pieces, start=1):
            # A row without tail among rows with one would have its answer slot elsewhere.
            if not len(piece) or (has_tail and not piece.after):
                raise DataError(f"text {row} has no tokens in the field after the prompt; fix or remove it")
        distinct = list(dict.fromkeys(piece.before for piece in pieces if piece.before))
        free = self.context_bytes - self._kept_bytes
        free = free if keep_bytes is None else min(free, keep_bytes)
        opening = self._shared_opening(renderer)
        kept = self.within_memory(lambda budget: self._kept(distinct, free, budget, opening))
        for state in kept.values():
            self._release(-state.nbytes)
            weakref.finalize(state, self._release, state.nbytes).atexit = False
        shared = 0 if opening is None else opening.shape[3]
        parts = [[len(ids) - shared for ids in distinct], [len(piece.after) for piece in pieces]]
        padding = padding_share(*((part, list(token_batches(part, self.budget))) for part in parts))
        states = tuple(kept.get(piece.before) for piece in pieces)
        return Context(pieces, states, opening, renderer=renderer, examples=tuple(examples), padding=padding)

    def _release(self, size: int) -> None:
        with self._counting:
            self._kept_bytes -= size

    def _kept(
        self, texts: Sequence[tuple[int, ...]], free: int, budget: Budget, opening: Tensor | None
    ) -> dict[tuple[int, ...], Tensor]:
        """Return the states of as many texts, longest first, as fit into `free` bytes; `opening` as in `Context`."""
        kept: dict[tuple[int, ...], Tensor] = {}
        token_bytes = 0  # unknown until the first text was read
        shared = 0 if opening is None else opening.shape[3]
        own = [len(ids) - shared for ids in texts]
        shares = [budget.charge(n, self._context_bytes(len(ids))) for n, ids in zip(own, texts, strict=True)]
        for batch in token_batches(own, budget, shares if shared else None):
            check_time()
            fitting = [texts[row] for row in batch if 0 < len(texts[row]) * max(token_bytes, 1) <= free]
            if not fitting:
                continue
            for ids, state in zip(fitting, self._read(fitting, opening).states(), strict=True):
                token_bytes = state.nbytes // len(ids)
                if state.nbytes <= free:
                    kept[ids] = state
                    free -= state.nbytes
        return kept

    def shares(self, prompts: Prompts) -> bool:
        """Return whether `read` takes prompts, each over texts of its own, together: of one length, without more."""
        more = (*prompts.states, *prompts.heads)
        return len(set(map(len, prompts.codes))) == 1 and all(own is None for own in more)

    def _check_fit(self, context: Context, prompts: Prompts) -> None:
        super()._check_fit(context, prompts)
        is_bare = not all(prompts.codes) and not any(piece.after for piece in context.pieces)
        if is_bare and any(states is not None for states in prompts.states):
            raise nothing_between(context.renderer)

    def read(self, texts: Rows, prompts: Prompts, query: Query, owners: Sequence[int] = ()) -> Tensor:
        """Return what a query reads of every text with every prompt `[T, B, X]`; as `Backbone.read`.

        Prompts stand behind every text as branches of one tree, which share their beginnings. They have the first one's
        prefix and class head.
        """
        if not len(texts) or not prompts.codes:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        trees = self._trees(texts, prompts, query, owners)

        def run(budget: Budget) -> Tensor:
            # Rows whose context comes from one read; the passes over them hold fewer rows, or more, as nodes ask.
            known = 0 if texts.opening is None else texts.opening.shape[3]
            read = [
                len(piece.before) - known if state is None else 0
                for piece, state in zip(texts.pieces, texts.states, strict=True)
            ]
            shares = [
                budget.charge(own, self._context_bytes(len(piece.before)))
                for own, piece in zip(read, texts.pieces, strict=True)
            ]
            order, parts = [], []
            for group in token_batches(read, budget, shares):
                pieces = texts.pieces
                rows = sorted(group, key=lambda row: (-trees.rank(row, pieces[row]), -len(pieces[row].before)))
                parts += self._read_group(texts, rows, trees, prompts.states[0], budget)
                order.append(rows)
            return restore_order(same_width(parts), order, dim=1)

        return self._score_within_memory(run)

    def _trees(self, texts: Rows, prompts: Prompts, query: Query, owners: Sequence[int]) -> SharedTrees | OwnTrees:
        """Return what lays out passes over some texts: the same tree for all, or one for each where options differ."""
        has_tails = any(piece.after for piece in texts.pieces)
        if query.own is not None and prompts.heads[0] is None:
            return OwnTrees(prompts, query, partial(columns_of, self.model, head=None), self.embed, owners, has_tails)
        columns = columns_of(self.model, query, prompts.heads[0])
        return SharedTrees(prompts, columns, self.embed, owners, has_tails)

    def _read_group(
        self,
        texts: Rows,
        rows: Sequence[int],
        trees: SharedTrees | OwnTrees,
        prefix: Tensor | None,
        budget: Budget,
    ) -> list[Tensor]:
        """Return what is read `[K, b, X]` of one pass after another over rows sorted by `rank`, the greatest first."""
        own = texts.select(rows)
        lead = self._lead(own, trees, rows[0], prefix, budget)
        past = replace(self._past(own, lead), prefix=prefix)
        parts = []
        start = 0
        while start < len(rows):
            grown = trees.trees(rows[start], own.pieces[start], lead, self.tree_nodes(past.seen, budget))
            nodes = max(len(tree.codes) for tree in grown)
            size = self._pass_bytes(past.seen, nodes) + trees.slot_bytes * max(len(tree.ends) for tree in grown)
            stop = start + max(1, budget.tokens // budget.charge(nodes, size))
            before = past.rows(start, stop)
            scores = []
            for plan, columns in trees.passes(grown, rows[start:stop], own.pieces[start:stop], lead, before):
                check_time()
                scores.append(self.run(plan, columns))
            parts.append(torch.cat(scores))
            start = stop
        return parts

    def _lead(
        self, texts: Rows, trees: SharedTrees | OwnTrees, first: int, prefix: Tensor | None, budget: Budget
    ) -> int:
        """Return how many of the last tokens before the prompt stand at the root of the tree.

        `first` is the number of the first text, which takes the most nodes.
        """
        whole = max(len(piece.before) for piece in texts.pieces)
        if self.trains_weights:
            if prefix is not None and whole:
                raise PromptError("a prefix after the text cannot be trained together with the model's weights")
            return whole  # what is read apart carries no gradient
        if any(state is not None for state in texts.states) or prefix is not None:
            return trees.lead
        shared = 0 if texts.opening is None else texts.opening.shape[3]
        fits = whole - shared + trees.cost(first, texts.pieces[0]) <= self.tree_nodes(shared, budget)
        return max(whole - shared, trees.lead) if fits else trees.lead  # one pass and not two

    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `read_rows` takes it; errors as of `Backbone.ready`.

        Where it stands before the text, it is read ahead; then it carries no gradient.
        """
        renderer, own = self.renderer(task), self.placed(prompt)
        query = Query.for_task(renderer) if renderer.label_ids else FEATURES  # `ready_for` asks for options
        found = ReadyPrompt(**vars(own), renderer=renderer, columns=columns_of(self.model, query, own.head))
        if found.states is not None and not len(found.vectors) and not renderer.has_tail:
            raise nothing_between(renderer)
        opening = renderer.opening_ids
        if opening is None or not self._shares_context or not (opening or found.length):
            return replace(found, shared=self._shared_opening(renderer))
        none = found.vectors.new_zeros(0, found.vectors.shape[1])
        return replace(found, vectors=none, offsets=None, states=None, opening=self._opened(opening, found))

    @torch.no_grad()
    def _opened(self, before: tuple[int, ...], prompt: ReadyPrompt) -> Tensor:
        """Return the keys and values of ids and a prompt behind them `[n_layers, 2, n_kv_heads, L, head_dim]`."""
        parts = [self.read_states(before)] if before else []
        parts += [] if prompt.states is None else [prompt.states]
        past = torch.cat(parts, dim=3) if parts else None
        if len(prompt.vectors):
            with keeping(self.model) as kept:
                self._run_rows([RowTree(past, (), (Branch(0, prompt, ()),))])
            new = torch.stack([torch.stack([part[0] for part in kept[layer]]) for layer in sorted(kept)])
            parts.append(new[:, :, :, : len(prompt.vectors)])
        return torch.cat(parts, dim=3)

    def read_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own, of any task and kind; differentiable.

        Raises:
            PromptError: a prompt and its text are longer than the backbone's positions.
        """
        for prompt, piece in rows:
            prompt.renderer.check_length([piece], prompt.length, prompt.own)

        def run(budget: Budget) -> list[Tensor]:
            trees = self._row_trees(rows, budget)
            nodes = [row.nodes for row in trees]
            shares = [budget.charge(row.nodes, self._pass_bytes(row.seen, row.nodes)) for row in trees]
            found: dict[int, Tensor] = {}
            for batch in token_batches(nodes, budget, shares):
                own = [trees[n] for n in batch]
                found |= zip((part.number for row in own for part in row.parts), self._run_rows(own), strict=True)
            return [found[n][: prompt.num_options] for n, (prompt, _) in enumerate(rows)]

        return self._score_within_memory(run)

    def _run_rows(self, rows: Sequence[RowTree]) -> Tensor:
        """Run one pass; return class scores `[branches, C]`, zeros behind a branch's own classes."""
        columns = row_columns([part.prompt.columns for row in rows for part in row.parts])
        return self.run(rows_plan(rows, self.embed, self.device), columns)[0]

    def _row_trees(self, rows: Sequence[Row], budget: Budget) -> list[RowTree]:
        """Lay rows out: those of one text together, as branches of it, where they are not too many.

        What is read apart instead: texts of too many prompts, and texts that a prefix stands behind.
        """
        found, apart = [], []
        together: dict[tuple[int, tuple[int, ...]], list[Branch]] = {}
        for number, (prompt, piece) in enumerate(rows):
            part = Branch(number, prompt, piece.after)
            if prompt.opening is not None:
                found.append(RowTree(prompt.opening, (), (part,)))
            elif prompt.states is not None and piece.before:
                apart.append((piece.before, part))
            elif prompt.states is not None:
                found.append(RowTree(prompt.states, (), (part,)))
            else:
                shared = 0 if prompt.shared is None else prompt.shared.shape[3]
                together.setdefault((shared, piece.before), []).append(part)
        for (shared, before), parts in together.items():
            row = RowTree(parts[0].prompt.shared, before[shared:], tuple(parts))
            if len(parts) == 1 or (before and row.nodes <= self.tree_nodes(shared, budget)):
                found.append(row)
            elif before:
                apart += [(before, part) for part in parts]
            else:
                found += [RowTree(None, (), (part,)) for part in parts]
        return found + self._behind(apart, budget)

    def _behind(self, parts: Sequence[tuple[tuple[int, ...], Branch]], budget: Budget) -> list[RowTree]:
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
            found.append(RowTree(past, lead, (part,)))
        return found


def nothing_between(renderer: Renderer) -> PromptError:
    """Return the error of a prefix behind which no token stands that could answer."""
    return PromptError(
        f"nothing stands between the prefix and the answer in {renderer.task.template.source!r}; "
        "write words in its prompt slot, {prompt:words}, or put {prompt} before the text"
    )
