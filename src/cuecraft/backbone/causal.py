"""Causal language models: text first, cue last, contexts kept as keys and values.

Tokens after the text do not change the text's keys and values, so these are computed once for each example; every
later pass costs only the tokens from the prompt on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.base import Context, Prompt, Swap
from cuecraft.backbone.budget import Budget, memory_of, restore_order
from cuecraft.backbone.columns import FeatureReadout, Readout, SequenceReadout, readout
from cuecraft.backbone.cues import Cues, Past, Rows, VectorTable
from cuecraft.backbone.hooks import passing
from cuecraft.backbone.layout import Layout, MixedCausal, own_tokens
from cuecraft.backbone.plan import nothing_between
from cuecraft.backbone.tree import CueTree, tree_groups
from cuecraft.core.deadline import check_time
from cuecraft.core.errors import BackboneError, DataError, PromptError
from cuecraft.task import Example, Task
from cuecraft.task.batches import padding_share, token_batches


class CausalBackbone(MixedCausal):
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
    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Render the examples and keep the keys and values of what stands before the prompt.

        Identical texts are read once, and so is what all texts of a task begin with. What would go beyond
        `context_bytes`, over all contexts of this backbone that are still in use, or beyond `keep_bytes` for this one,
        is not kept and read again by each pass; 0 suits texts that one pass reads and no other.
        """
        renderer = self.renderer(task)
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
        return Context(renderer, tuple(examples), pieces, states, padding, opening)

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

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self.class_logits_many(context, [prompt])[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples.

        Prompts without a prefix and a class head of their own share their passes.
        """
        shared = [n for n, prompt in enumerate(prompts) if prompt.states is None and prompt.head is None]
        alone = [n for n in range(len(prompts)) if n not in shared]
        groups = [group for group in (shared, *([n] for n in alone)) if group]
        parts = [self._score_together(context, [prompts[n] for n in group]) for group in groups]
        return restore_order(parts, groups, dim=0)

    def share_passes(self, parts: Sequence[tuple[Context, Prompt]]) -> bool:
        """Return whether `class_logits_each` reads these together: prompts of one length, without prefix and head."""
        lengths = {len(prompt.vectors(self.embed)) for _, prompt in parts}
        return len(lengths) == 1 and all(
            context.renderer is parts[0][0].renderer and prompt.states is None and prompt.head is None
            for context, prompt in parts
        )

    def class_logits_each(self, parts: Sequence[tuple[Context, Prompt]]) -> list[Tensor]:
        """Return class logits `[B, C]` of several prompts, each over examples of its own; differentiable."""
        if not self.share_passes(parts):
            return super().class_logits_each(parts)
        vectors = [self._vectors(prompt) for _, prompt in parts]
        offsets = [self._offsets(prompt, len(own)) for (_, prompt), own in zip(parts, vectors, strict=True)]
        whole, length = reduce(Context.joined, (context for context, _ in parts)), len(vectors[0])
        firsts = [number * length for number, (context, _) in enumerate(parts) for _ in range(len(context))]
        cues = Cues([tuple(range(length))], None, None)
        scores = self._score(whole, VectorTable.of(vectors, offsets), cues, firsts=firsts)[0]
        return list(scores.split([len(context) for context, _ in parts]))

    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return the hidden states at the answer slot `[B, d]`, as the output embedding gets them; differentiable."""
        return self.read_answer(context, prompt, FeatureReadout(self.model))

    def read_answer(self, context: Context, prompt: Prompt, reads: Readout) -> Tensor:
        """Return what a readout reads at the answer slots `[B, X]`."""
        return self._score_together(context, [prompt], reads)[0]

    @torch.no_grad()
    def read_cues(self, texts: Rows, cues: Sequence[tuple[int, ...]]) -> Tensor:
        """Return log-probabilities (nats) `[B, K]` of cues standing right after texts.

        Args:
            texts: texts with ids before the prompt and none after it.
            cues: ids of each, none empty, in sorted order: neighbours share the nodes of their beginnings.
        """
        no_vectors = VectorTable(self.embed(torch.zeros(0, dtype=torch.long)), None)
        nodes = self._tree_nodes(self.budget, max(len(piece.before) for piece in texts.pieces))
        parts = []
        for group in tree_groups(cues, nodes):
            reads = SequenceReadout(self.model, group)
            table, layout = self._laid_out(no_vectors, [()], reads, has_tails=False)
            parts.append(self._score_rows(texts, table, layout, (reads, None))[0])
        return torch.cat(parts, dim=1)

    def _score_together(self, context: Context, prompts: Sequence[Prompt], reads: Readout | None = None) -> Tensor:
        """Return what is read `[T, B, X]` of several prompts with the first one's prefix and class head."""
        if not prompts:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        vectors = [self._vectors(prompt) for prompt in prompts]
        offsets = [self._offsets(prompt, len(own)) for prompt, own in zip(prompts, vectors, strict=True)]
        codes = torch.arange(sum(map(len, vectors))).split([len(own) for own in vectors])
        cues = Cues([tuple(own.tolist()) for own in codes], self._states(prompts[0]), prompts[0].head)
        return self._score(context, VectorTable.of(vectors, offsets), cues, reads)

    @torch.no_grad()
    def score_swaps(self, context: Context, prompt: Prompt, swaps: Sequence[Swap]) -> Tensor:
        """Return class logits `[K, B, C]` with each swap (position, token id) made alone; no gradient.

        All share the context, and all that share a beginning of the prompt share that: they are branches of one tree.
        """
        vectors = self._vectors(prompt)
        offsets = self._offsets(prompt, len(vectors))
        cue, swaps = tuple(range(len(vectors))), self._checked_swaps(swaps, len(vectors))
        new = self.embed(torch.tensor([token for _, token in swaps], dtype=torch.long)).to(vectors.dtype)
        # A token that takes another's place gets the offsets of that place.
        moved = None if offsets is None else offsets[:, [position for position, _ in swaps]]
        cues = [(*cue[:at], len(cue) + k, *cue[at + 1 :]) for k, (at, _) in enumerate(swaps)]
        with_prefix = Cues(cues, self._states(prompt), prompt.head)
        return self._score(context, VectorTable.of([vectors, new], [offsets, moved]), with_prefix)

    def _score(
        self,
        context: Context,
        table: VectorTable,
        cues: Cues,
        reads: Readout | None = None,
        firsts: Sequence[int] = (),
    ) -> Tensor:
        """Return what is read `[K, B, X]` of cues that are rows of the table; by default class logits.

        `firsts` as in `Rows`.
        """
        if not len(context) or not cues.codes:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        has_tails = any(piece.after for piece in context.pieces)
        context.renderer.check_length(context.pieces, cues.length)
        reads = reads or readout(self.model, context.renderer.label_ids, cues.head)
        table, layout = self._laid_out(table, cues.codes, reads, has_tails)
        if layout.lead and cues.states is not None:
            raise nothing_between(context.renderer)
        texts = Rows(context.pieces, context.states, firsts, context.opening)
        return self._score_rows(texts, table, layout, (reads, cues.states))

    def _laid_out(
        self, table: VectorTable, codes: Sequence[tuple[int, ...]], reads: Readout, has_tails: bool
    ) -> tuple[VectorTable, Layout]:
        """Return the table with the vectors of the tokens that a readout grows, and the layout of its cues."""
        words = tuple(sorted({token for ids in reads.beginnings for token in ids}))
        layout = Layout(codes, words, reads.beginnings, len(table.vectors), has_tails)
        return (table.extended(self.embed(torch.tensor(words))) if words else table), layout

    def _score_rows(
        self, texts: Rows, table: VectorTable, layout: Layout, shared: tuple[Readout, Tensor | None]
    ) -> Tensor:
        """Return what is read `[K, B, X]` of cues laid out; `shared` as in `_group_scores`."""

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
                rows = sorted(group, key=lambda row: (-len(texts.pieces[row].after), -len(texts.pieces[row].before)))
                parts += self._group_scores(texts.select(rows), table, layout, shared, budget)
                order.append(rows)
            return restore_order(parts, order, dim=1)

        return self._score_within_memory(run)

    def _group_scores(
        self,
        texts: Rows,
        table: VectorTable,
        layout: Layout,
        shared: tuple[Readout, Tensor | None],
        budget: Budget,
    ) -> list[Tensor]:
        """Return what is read `[K, b, X]` of one pass after another over rows sorted by the length of their tails.

        Args:
            texts: the rows.
            table: the vectors.
            layout: of the cues.
            shared: what is read, and the keys and values of a prefix.
            budget: of a pass.
        """
        reads, prefix = shared
        lead = self._lead(texts, layout, prefix, budget)
        past = replace(self._past(texts, lead), prefix=prefix)
        parts = []
        start = 0
        while start < len(texts.pieces):
            width = len(texts.pieces[start].after)
            trees = layout.trees(width, lead, self._tree_nodes(budget, past.seen))
            nodes = max(len(tree.codes) for tree in trees)
            size = self._pass_bytes(past.seen, nodes) + reads.slot_bytes * max(len(tree.ends) for tree in trees)
            stop = start + max(1, budget.tokens // budget.charge(nodes, size))
            own = own_tokens(texts.pieces[start:stop], width, lead)
            rows = past.rows(start, stop)
            grown = [layout.for_rows(tree, texts.firsts[start:stop]) for tree in trees]
            scores = []
            for tree in grown:
                check_time()
                scores.append(self._tree_scores(rows, own, table, tree, reads))
            parts.append(torch.cat(scores))
            start = stop
        return parts

    def _lead(self, texts: Rows, layout: Layout, prefix: Tensor | None, budget: Budget) -> int:
        """Return how many of the last tokens before the prompt stand at the root of the tree."""
        whole = max(len(piece.before) for piece in texts.pieces)
        if self.trains_weights:
            if prefix is not None and whole:
                raise PromptError("a prefix after the text cannot be trained together with the model's weights")
            return whole  # what is read apart carries no gradient
        if any(state is not None for state in texts.states) or prefix is not None:
            return layout.lead
        shared = 0 if texts.opening is None else texts.opening.shape[3]
        fits = whole - shared + layout.cost(len(texts.pieces[0].after)) <= self._tree_nodes(budget, shared)
        return max(whole - shared, layout.lead) if fits else layout.lead  # one pass and not two

    def _tree_scores(
        self,
        past: Past,
        own: tuple[Tensor, Tensor],
        table: VectorTable,
        tree: CueTree,
        reads: Readout,
    ) -> Tensor:
        """Return what is read `[K, b, X]` of one tree over one batch of rows."""
        own_ids, own_valid = (part.to(self.device) for part in own)
        codes = tree.codes.to(self.device)
        # A zero row stands for the vectors of a table that has none (no prompt, one-token label words).
        vectors = table.vectors if len(table.vectors) else table.vectors.new_zeros(1, table.vectors.shape[1])
        inputs = vectors[codes.clamp(min=0)].expand(len(own_ids), -1, -1).clone()  # some models scale it in place
        valid = torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device)
        if own_ids.shape[1]:
            tokens = codes if codes.ndim == 1 else codes[0]  # of the rows' own ones the numbers are the same in all
            is_own, at = tokens < 0, (-1 - tokens).clamp(min=0)
            inputs = torch.where(is_own[None, :, None], self.embed(own_ids)[:, at], inputs)
            valid = torch.where(is_own[None], own_valid[:, at], valid)
        slots = torch.tensor(tree.ends, device=self.device).expand(len(own_ids), -1)
        with reads.reading(slots) as scores, passing(change=_change(table, codes)):
            logits = self._forward(inputs, tree.ancestors, valid, past).logits
        return scores(logits)


def _change(table: VectorTable, codes: Tensor) -> Callable[[int, Tensor], Tensor] | None:
    """Return what to change on the way into each layer: nodes `[..., N]` of the table get their offsets."""
    if table.offsets is None or not table.offsets.shape[1]:
        return None
    offsets = table.offsets[:, codes.clamp(min=0)] * (codes >= 0)[..., None].to(table.offsets.dtype)
    return lambda layer, hidden: hidden + offsets[layer]
