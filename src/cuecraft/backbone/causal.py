"""Causal language models: text first, cue last, contexts kept as keys and values.

Tokens after the text do not change the text's keys and values, so these are computed once for each example; every
later pass costs only the tokens from the prompt on. All such passes go through `CausalBackbone._forward`, the one
place that knows about placement, masks and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.attention import attending_to, cache_of
from cuecraft.backbone.base import Context, Prompt, Swap
from cuecraft.backbone.batching import Budget, padding_share, restore_order, token_batches
from cuecraft.backbone.frozen import FrozenModel
from cuecraft.backbone.layers import entering
from cuecraft.backbone.layout import Layout
from cuecraft.backbone.readout import LabelReadout
from cuecraft.backbone.rendering import HeadKind, Pieces
from cuecraft.backbone.tree import CueTree
from cuecraft.errors import BackboneError, DataError
from cuecraft.task import Example, Task

_TOLERANCE = 0.02  # of the greatest logit: wide enough for bfloat16, far from a wrong mask or position


class CausalBackbone(FrozenModel):
    """A decoder-only language model that answers with its next word.

    Args:
        model: an ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
        budget: what one pass may take; None for the default of the model's device.
        context_bytes: bytes of keys and values to keep over all examples of one context; beyond that they are
            computed again by each pass.
    """

    head_kind = HeadKind.CAUSAL

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        fingerprint: Callable[[], str],
        budget: Budget | None = None,
        context_bytes: int = 6 * 2**30,
    ) -> None:
        super().__init__(model, tokenizer, name, fingerprint, budget)
        self.context_bytes = context_bytes
        self._shares_context = self._answers_alike(shares_context=True)
        if not self._shares_context and not self._answers_alike(shares_context=False):
            raise BackboneError(
                f"{name} ({model.config.model_type}) cannot be used as a causal backbone: "
                "it does not answer alike with and without a context cache"
            )

    @property
    def max_positions(self) -> int | None:
        """Tokens that one input may have; None when the model sets no limit.

        Masks are made here for full attention, so inputs stay within an attention window, where both are the same.
        """
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        is_windowed = kinds is None or any(kind != "full_attention" for kind in kinds)
        names = ("sliding_window", "window_size", "attention_chunk_size") if is_windowed else ()
        limits = [super().max_positions, *(getattr(config, name, None) for name in names)]
        return min((limit for limit in limits if limit), default=None)

    @torch.no_grad()
    def _answers_alike(self, shares_context: bool) -> bool:
        """Tell whether a kept context and a pass over it give the logits of one plain forward pass."""
        self._shares_context = shares_context
        ids = torch.arange(6) * 7 % self.vocab_size
        own = torch.zeros(1, dtype=torch.long, device=self.device)
        plain = self.model(input_ids=ids[None].to(self.device)).logits[0, -1].float()
        try:
            state = self._read([tuple(ids[:3].tolist())])[0]
            chain = torch.ones(3, 3, dtype=torch.bool).tril()
            valid = torch.ones(1, 3, dtype=torch.bool, device=self.device)
            past = (state[:, :, None], own + 3)
            found = self._forward(self.embed(ids[3:])[None], chain, valid, past).logits[0, -1].float()
        except Exception:  # architectures without an ordinary cache or attention fail in ways of their own
            return False
        return torch.allclose(found, plain, atol=_TOLERANCE * float(plain.abs().max()))

    @torch.no_grad()
    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Render the examples and keep the keys and values of what stands before the prompt.

        Identical texts are read once. Texts beyond `keep_bytes` (default: the backbone's `context_bytes`) keep
        nothing and are read again by each pass; 0 suits texts that one pass reads and no other.
        """
        renderer = self.renderer(task)
        pieces = tuple(renderer.render(examples))
        renderer.check_length(pieces, 0)
        for row, piece in enumerate(pieces, start=1):
            # A row without tail among rows with one would have its answer slot elsewhere.
            if not len(piece) or (not piece.after and pieces[0].after):
                raise DataError(f"text {row} has no tokens in the field after the prompt; mend or remove it")
        distinct = list(dict.fromkeys(piece.before for piece in pieces if piece.before))
        lengths = [len(ids) for ids in distinct]
        batches = list(token_batches(lengths, self.budget.tokens))
        free = self.context_bytes if keep_bytes is None else keep_bytes
        kept: dict[tuple[int, ...], Tensor] = {}
        for batch in batches:
            if free <= 0:
                break
            for row, state in zip(batch, self._states([distinct[row] for row in batch]), strict=True):
                free -= state.nbytes
                if free >= 0:
                    kept[distinct[row]] = state
        states = tuple(kept.get(piece.before) for piece in pieces)
        return Context(renderer, pieces, states, padding_share(lengths, batches))

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self.class_logits_many(context, [prompt])[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples, in shared passes."""
        vectors = [self._vectors(prompt) for prompt in prompts]
        offsets = [self._offsets(prompt, len(own)) for prompt, own in zip(prompts, vectors, strict=True)]
        codes = torch.arange(sum(map(len, vectors))).split([len(own) for own in vectors])
        return self._score(context, _Table.of(vectors, offsets), [tuple(own.tolist()) for own in codes])

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
        return self._score(context, _Table.of([vectors, new], [offsets, moved]), cues)

    def _score(self, context: Context, table: _Table, cues: Sequence[tuple[int, ...]]) -> Tensor:
        """Return class logits `[K, B, C]` of cues that are tuples of rows of the table."""
        if not len(context) or not cues:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        context.renderer.check_length(context.pieces, max(map(len, cues)))
        readout = LabelReadout(self.model, context.renderer.label_ids)
        layout = Layout.of(context, cues, readout.beginnings, first_code=len(table.vectors))
        if layout.words:
            table = table.extended(self.embed(torch.tensor(layout.words)))

        def run(budget: Budget) -> Tensor:
            size = max(1, budget.tree // layout.cost)
            trees = [layout.tree(cues[k : k + size]) for k in range(0, len(cues), size)]
            nodes = max(len(tree.codes) for tree in trees)
            costs = [budget.charge(nodes, self._row_bytes(len(piece.before), nodes)) for piece in context.pieces]
            # Rows of like length stand together: the costs are longest first, as the lengths are.
            order = sorted(range(len(context)), key=lambda row: (-len(context.pieces[row].before), row))
            batches = [
                [order[n] for n in batch] for batch in token_batches([costs[row] for row in order], budget.tokens)
            ]
            parts = []
            for batch in batches:
                pieces = [context.pieces[row] for row in batch]
                past = self._past(pieces, [context.states[row] for row in batch], layout.lead)
                own = layout.own_tokens(pieces)
                parts.append(torch.cat([self._tree_scores(past, own, table, tree, readout) for tree in trees]))
            return restore_order(parts, batches, dim=1)

        return self._within_memory(run)

    def _row_bytes(self, width: int, nodes: int) -> int:
        """Return about how many bytes a pass takes for one row of `width` kept tokens and `nodes` new ones."""
        config = self.model.config.get_text_config()
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        layers = config.num_hidden_layers
        # What one layer holds at a time; a pass with a gradient keeps it for all of them.
        layer = nodes * (6 * hidden + 3 * inner) + 3 * heads * nodes * (width + nodes)
        share = getattr(config, "num_key_value_heads", None) or heads
        past = 2 * layers * width * (hidden // heads) * share
        total = past + layer * (layers if torch.is_grad_enabled() else 1)
        return int(total * self.model.dtype.itemsize)

    def _tree_scores(
        self,
        past: tuple[Tensor | None, Tensor],
        own: tuple[Tensor, Tensor],
        table: _Table,
        tree: CueTree,
        readout: LabelReadout,
    ) -> Tensor:
        """Return class scores `[K, b, C]` of one tree over one batch of rows."""
        own_ids, own_valid = (part.to(self.device) for part in own)
        codes = tree.codes.to(self.device)
        # A zero row stands for the vectors of a table that has none (no prompt, one-token label words).
        vectors = table.vectors if len(table.vectors) else table.vectors.new_zeros(1, table.vectors.shape[1])
        inputs = vectors[codes.clamp(min=0)].expand(len(own_ids), -1, -1)
        valid = torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device)
        if own_ids.shape[1]:
            is_own, at = codes < 0, (-1 - codes).clamp(min=0)
            inputs = torch.where(is_own[None, :, None], self.embed(own_ids)[:, at], inputs)
            valid = torch.where(is_own[None], own_valid[:, at], valid)
        slots = torch.tensor(tree.ends, device=self.device).expand(len(own_ids), -1)
        with readout.reading(slots), entering(*self._entering(table, codes)):
            logits = self._forward(inputs, tree.ancestors, valid, past).logits
        return readout.class_scores(logits)

    def _entering(self, table: _Table, codes: Tensor) -> tuple[Sequence[Any], Callable[[int, Tensor], Tensor] | None]:
        """Return what to change on the way into each layer: nodes `[N]` of the table get their offsets."""
        if table.offsets is None:
            return (), None
        offsets = table.offsets[:, codes.clamp(min=0)] * (codes >= 0)[:, None].to(table.offsets.dtype)
        return self.layers, lambda layer, hidden: hidden + offsets[layer]

    def _forward(self, inputs: Tensor, ancestors: Tensor, valid: Tensor, past: tuple[Tensor | None, Tensor]) -> Any:
        """Run one pass: the only place that makes masks and positions.

        Args:
            inputs: `[b, N, d]` vectors of the new tokens.
            ancestors: `[N, N]` bool, which new tokens each new token may see.
            valid: `[b, N]` bool, false at padding.
            past: keys and values `[n_layers, 2, b, n_kv_heads, P, head_dim]` of the tokens before, right-padded, or
                None; and `[b]` how many of the P are real.
        """
        keys_values, lengths = past
        seen = ancestors.to(inputs.device) & valid[:, None, :]
        # A new token's position counts the context and its own real ancestors, so padding moves nothing.
        positions = (lengths[:, None] + seen.sum(-1) - 1).clamp(min=0)
        allowed = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
        cache = None
        attending: AbstractContextManager[None] = nullcontext()
        if keys_values is not None:
            real = torch.arange(keys_values.shape[4], device=inputs.device) < lengths[:, None]
            allowed = torch.cat([real[:, None, :].expand(-1, allowed.shape[1], -1), allowed], dim=-1)
            if self._shares_context:
                attending = attending_to(self.model, keys_values)
            else:
                cache = cache_of(keys_values)
        mask = torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device)
        mask.masked_fill_(~allowed, torch.finfo(inputs.dtype).min)
        with attending:
            return self.model(
                inputs_embeds=inputs,
                attention_mask=mask[:, None],
                position_ids=positions,
                past_key_values=cache,
                use_cache=False,
            )

    def _states(self, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the states of sequences of ids, in batches that fit."""

        def run(budget: Budget) -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for batch in token_batches([len(ids) for ids in texts], budget.tokens):
                found.update(zip(batch, self._read([texts[row] for row in batch]), strict=True))
            return [found[row] for row in range(len(texts))]

        return self._within_memory(run)

    @torch.no_grad()
    def _read(self, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return keys and values `[n_layers, 2, n_kv_heads, len, head_dim]` of each sequence of ids, in one pass.

        Sequences are padded on the right, where no real token of a causal model sees the padding: the model's own
        mask and positions hold.
        """
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        layers = self.model.base_model(input_ids=ids.to(self.device), use_cache=True).past_key_values.layers
        return [
            torch.stack(
                [torch.stack([layer.keys[row, :, : len(text)], layer.values[row, :, : len(text)]]) for layer in layers]
            )
            for row, text in enumerate(texts)
        ]

    @torch.no_grad()
    def _past(
        self, pieces: Sequence[Pieces], states: Sequence[Tensor | None], lead: int
    ) -> tuple[Tensor | None, Tensor]:
        """Return a batch's keys and values, right-padded and without each row's last `lead`, and their number."""
        lengths = [max(0, len(piece.before) - lead) for piece in pieces]
        used = torch.tensor(lengths, device=self.device)
        if not max(lengths):
            return None, used
        known = {n: state for n, state in enumerate(states) if state is not None}
        absent = [n for n, length in enumerate(lengths) if length and n not in known]
        known.update(zip(absent, self._states([pieces[n].before for n in absent]), strict=True))
        first = next(iter(known.values()))
        layers, two, heads, _, width = first.shape
        past = first.new_zeros(layers, two, len(pieces), heads, max(lengths), width)
        for n, state in known.items():
            past[:, :, n, :, : lengths[n]] = state[:, :, :, : lengths[n]]
        return past, used


@dataclass(frozen=True, eq=False)
class _Table:
    """The vectors that the nodes of a tree refer to.

    Args:
        vectors: `[M, d]`.
        offsets: `[n_layers, M, d]` added to the hidden states entering each layer; None for nothing.
    """

    vectors: Tensor
    offsets: Tensor | None

    @classmethod
    def of(cls, vectors: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> _Table:
        """Stack parts; a part without offsets gets zeros where another has some."""
        first = next((part for part in offsets if part is not None), None)
        if first is None:
            return cls(torch.cat(list(vectors)), None)
        filled = [
            first.new_zeros(first.shape[0], len(own), first.shape[2]) if part is None else part
            for own, part in zip(vectors, offsets, strict=True)
        ]
        return cls(torch.cat(list(vectors)), torch.cat(filled, dim=1))

    def extended(self, vectors: Tensor) -> _Table:
        """Return the table with more rows, without offsets."""
        return self.of([self.vectors, vectors.to(self.vectors.dtype)], [self.offsets, None])
