"""Causal language models: text first, cue last, contexts kept as keys and values.

Tokens after the text do not change the text's keys and values, so these are computed once for each example; every
later pass costs only the tokens from the prompt on. All passes go through `CausalBackbone._forward`, the one place
that knows about placement, masks and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cuecraft.backbone.base import Context, FrozenModel, Prompt, restore_order, token_batches
from cuecraft.backbone.readout import LabelReadout
from cuecraft.backbone.rendering import HeadKind, Pieces
from cuecraft.backbone.tree import CueTree, grow_tree
from cuecraft.errors import BackboneError, DataError
from cuecraft.task import Example, Task

_READ_TOKENS = 4096  # tokens of one context-building pass
_PASS_TOKENS = 12288  # tokens of one cue pass, cached ones included, all rows together
_TOLERANCE = 0.02  # of the greatest logit: wide enough for bfloat16, far from a wrong mask or position
_TREE_NODES = 384  # nodes of one tree: beyond that its N x N mask costs more than it saves


class CausalBackbone(FrozenModel):
    """A decoder-only language model that answers with its next word.

    Args:
        model: an ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
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
        context_bytes: int = 6 * 2**30,
    ) -> None:
        super().__init__(model, tokenizer, name, fingerprint)
        self.context_bytes = context_bytes
        self._check_cache()

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
    def _check_cache(self) -> None:
        """Raise BackboneError where the model does not answer alike with and without a context cache."""
        ids = torch.arange(6) * 7 % self.vocab_size
        own = torch.zeros(1, dtype=torch.long, device=self.device)
        advice = f"{self.name} ({self.model.config.model_type}) cannot be used as a causal backbone"
        try:
            plain = self.model(input_ids=ids[None].to(self.device)).logits[0, -1].float()
            state = self._read([tuple(ids[:3].tolist())])[0]
            inputs = self.embed(ids[3:])[None]
            chain = torch.ones(3, 3, dtype=torch.bool).tril()
            valid = torch.ones(1, 3, dtype=torch.bool, device=self.device)
            found = self._forward(self.model, inputs, chain, valid, state[:, :, None], own + 3).logits[0, -1].float()
        except Exception as error:  # architectures without an ordinary cache fail in ways of their own
            raise BackboneError(f"{advice}: it takes no context cache ({str(error)[:120]})") from error
        if not torch.allclose(found, plain, atol=_TOLERANCE * float(plain.abs().max())):
            raise BackboneError(f"{advice}: its logits differ with a context cache")

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
        kept: dict[tuple[int, ...], Tensor] = {}
        free = self.context_bytes if keep_bytes is None else keep_bytes
        for batch in token_batches([len(ids) for ids in distinct], _READ_TOKENS):
            if free <= 0:
                break
            for row, state in zip(batch, self._read([distinct[row] for row in batch]), strict=True):
                free -= state.nbytes
                if free >= 0:
                    kept[distinct[row]] = state
        return Context(renderer, pieces, tuple(kept.get(piece.before) for piece in pieces))

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self.class_logits_many(context, [prompt])[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples, in shared passes."""
        vectors = [self._vectors(prompt) for prompt in prompts]
        starts = torch.tensor([0, *(len(v) for v in vectors)]).cumsum(0).tolist()
        cues = [tuple(range(start, stop)) for start, stop in pairwise(starts)]
        return self._score(context, torch.cat(vectors), cues)

    @torch.no_grad()
    def score_candidates(self, context: Context, prompt: Prompt, position: int, token_ids: Sequence[int]) -> Tensor:
        """Return class logits `[K, B, C]` with each candidate token in turn at one position of the prompt.

        All candidates share the context and the prompt's beginning and stand as branches of one tree.
        """
        vectors = self._vectors(prompt)
        table = torch.cat([vectors, self.embed(self._token_ids(token_ids))])
        cue = tuple(range(len(vectors)))
        cues = [(*cue[:position], len(vectors) + k, *cue[position + 1 :]) for k in range(len(token_ids))]
        return self._score(context, table, cues)

    def _score(self, context: Context, table: Tensor, cues: Sequence[tuple[int, ...]]) -> Tensor:
        """Return class logits `[K, B, C]` of cues that are tuples of rows of a table of vectors `[M, d]`."""
        if not len(context) or not cues:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        context.renderer.check_length(context.pieces, max(map(len, cues)))
        readout = LabelReadout(self.model, context.renderer.label_ids)
        layout = _Layout.of(context, cues, readout.beginnings, first_code=len(table))
        if layout.words:
            table = torch.cat([table, self.embed(torch.tensor(layout.words))])
        size = max(1, _TREE_NODES // layout.cost)
        trees = [layout.tree(cues[k : k + size]) for k in range(0, len(cues), size)]
        nodes = max(len(tree.codes) for tree in trees)
        batches = list(token_batches([len(piece.before) + nodes for piece in context.pieces], _PASS_TOKENS))
        parts = []
        for batch in batches:
            pieces = [context.pieces[row] for row in batch]
            past = self._past(pieces, [context.states[row] for row in batch], layout.lead)
            own = layout.own_tokens(pieces)
            parts.append(torch.cat([self._tree_scores(past, own, table, tree, readout) for tree in trees]))
        return restore_order(parts, batches, dim=1)

    def _tree_scores(
        self,
        past: tuple[Tensor | None, Tensor],
        own: tuple[Tensor, Tensor],
        table: Tensor,
        tree: CueTree,
        readout: LabelReadout,
    ) -> Tensor:
        """Return class scores `[K, b, C]` of one tree over one batch of rows."""
        keys_values, lengths = past
        own_ids, own_valid = (part.to(self.device) for part in own)
        codes = tree.codes.to(self.device)
        # A zero row stands for the vectors of a table that has none (no prompt, one-token label words).
        vectors = table if len(table) else table.new_zeros(1, table.shape[1])
        inputs = vectors[codes.clamp(min=0)].expand(len(own_ids), -1, -1)
        valid = torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device)
        if own_ids.shape[1]:
            is_own, at = codes < 0, (-1 - codes).clamp(min=0)
            inputs = torch.where(is_own[None, :, None], self.embed(own_ids)[:, at], inputs)
            valid = torch.where(is_own[None], own_valid[:, at], valid)
        slots = torch.tensor(tree.ends, device=self.device).expand(len(own_ids), -1)
        with readout.reading(slots):
            logits = self._forward(self.model, inputs, tree.ancestors, valid, keys_values, lengths).logits
        return readout.class_scores(logits)

    def _forward(
        self,
        module: Any,
        inputs: Tensor,
        ancestors: Tensor,
        valid: Tensor,
        keys_values: Tensor | None,
        lengths: Tensor,
    ) -> Any:
        """Run one pass: the only place that makes masks and positions.

        Args:
            module: the language model, or its body without the output embedding.
            inputs: `[b, N, d]` vectors of the new tokens.
            ancestors: `[N, N]` bool, which new tokens each new token may see.
            valid: `[b, N]` bool, false at padding.
            keys_values: `[n_layers, 2, b, n_kv_heads, P, head_dim]` of the tokens before, right-padded; or None.
            lengths: `[b]` how many of the P are real.
        """
        seen = ancestors.to(inputs.device) & valid[:, None, :]
        # A new token's position counts the context and its own real ancestors, so padding moves nothing.
        positions = (lengths[:, None] + seen.sum(-1) - 1).clamp(min=0)
        allowed = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
        cache = None
        if keys_values is not None:
            real = torch.arange(keys_values.shape[4], device=inputs.device) < lengths[:, None]
            allowed = torch.cat([real[:, None, :].expand(-1, allowed.shape[1], -1), allowed], dim=-1)
            cache = _cache(keys_values)
        mask = torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device)
        mask.masked_fill_(~allowed, torch.finfo(inputs.dtype).min)
        return module(
            inputs_embeds=inputs,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=keys_values is None and not torch.is_grad_enabled(),
        )

    @torch.no_grad()
    def _read(self, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return keys and values `[n_layers, 2, n_kv_heads, len, head_dim]` of each sequence of ids."""
        width = max(map(len, texts))
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        valid = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            valid[row, : len(text)] = True
        output = self._forward(
            self.model.base_model,
            self.embed(ids),
            torch.ones(width, width, dtype=torch.bool).tril(),
            valid.to(self.device),
            None,
            torch.zeros(len(texts), dtype=torch.long, device=self.device),
        )
        layers = output.past_key_values.layers
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
        for batch in token_batches([len(pieces[n].before) for n in absent], _READ_TOKENS):
            rows = [absent[n] for n in batch]
            known.update(zip(rows, self._read([pieces[n].before for n in rows]), strict=True))
        first = next(iter(known.values()))
        layers, two, heads, _, width = first.shape
        past = first.new_zeros(layers, two, len(pieces), heads, max(lengths), width)
        for n, state in known.items():
            past[:, :, n, :, : lengths[n]] = state[:, :, :, : lengths[n]]
        return past, used


@dataclass(frozen=True)
class _Layout:
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
    ) -> _Layout:
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


def _cache(keys_values: Tensor) -> DynamicCache:
    """Wrap keys and values as the model's cache; a pass adds to the wrapper, never to the tensors."""
    cache = DynamicCache()
    for keys, values in keys_values:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
