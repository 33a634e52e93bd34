"""One pass of a causal language model: what tokens see and how they are numbered, and texts that are read alone.

All passes go through `CausalModel._forward`, the one place that knows about masks and positions; texts that are read
alone, without anything before or behind them, go through `CausalModel._read`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone.agreement import agree
from cuecraft.backbone.attention import attending_to, cache_of, keeping
from cuecraft.backbone.base import Backbone
from cuecraft.backbone.budget import Budget
from cuecraft.backbone.columns import feature_columns
from cuecraft.backbone.plan import Past, Plan, padded
from cuecraft.backbone.query import Rows
from cuecraft.backbone.tree import grow_tree
from cuecraft.core.errors import BackboneError
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

# GPT-Neo masks by the number of keys before a key, so branches must fit into its window next to the context.
_COUNT_KEYS = {"gpt_neo"}


class CausalModel(Backbone):
    """A decoder-only language model, one pass at a time.

    Args:
        model: an ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
        budget: what one pass may take; None for the default of the model's device.
        shares_context: what an earlier check of the same model found; None to check now.

    Raises:
        BackboneError: it does not answer alike with and without a context that is kept.
    """

    head_kind = HeadKind.CAUSAL
    reads_texts_once = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        fingerprint: Callable[[], str],
        budget: Budget | None = None,
        shares_context: bool | None = None,
    ) -> None:
        super().__init__(model, tokenizer, name, fingerprint, budget)
        self._shares_context = True if shares_context is None else shares_context
        if shares_context is None and not self._answers_alike():
            self._shares_context = False
            if not self._answers_alike():
                raise BackboneError(
                    f"{name} ({model.config.model_type}) cannot be used as a causal backbone: it does not answer alike "
                    "with and without a context cache; use another model or head"
                )

    @property
    def shares_context(self) -> bool:
        """Whether its attention takes kept keys and values as they are, without a copy for each row."""
        return self._shares_context

    @property
    def max_positions(self) -> int | None:
        """Tokens that one input may have; None when the model sets no limit.

        Masks are made here for full attention, so inputs stay within an attention window, where both are the same;
        and within the length up to which positions are encoded alike whatever the length of the input.
        """
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        is_windowed = kinds is None or any(kind != "full_attention" for kind in kinds)
        names = ("sliding_window", "window_size", "attention_chunk_size") if is_windowed else ()
        limits = [super().max_positions, *(getattr(config, name, None) for name in names), _rope_limit(config)]
        return min((limit for limit in limits if limit), default=None)

    @torch.no_grad()
    def _answers_alike(self) -> bool:
        """Return whether branches over kept, padded contexts have the logits of plain forward passes, one text each."""
        ids = self._sample_ids(7)
        texts, cues = [tuple(ids[:5]), tuple(ids[2:4])], [(0, 1), (0, 2), (3,)]
        vectors = torch.tensor([*ids[:3], ids[6]])
        tree = grow_tree(cues)
        try:
            plain = [
                [self._plain_logits([*text, *(int(vectors[code]) for code in cue)]) for cue in cues] for text in texts
            ]
            past = self._past(Rows([Pieces(text, ()) for text in texts], self._read(texts).states()), 0)
            inputs = self.embed(vectors)[tree.codes.to(self.device)].repeat(2, 1, 1)
            valid = torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device)
            plan = Plan(inputs=inputs, valid=valid, pick=lambda hidden: hidden, sees=tree.ancestors, past=past)
            found = self._forward(plan).logits[:, list(tree.ends)].float()
        except Exception:  # architectures without an ordinary cache or attention fail in ways of their own
            return False
        return agree(found, torch.stack([torch.stack(row) for row in plain]), self.name)

    def _plain_logits(self, ids: Sequence[int]) -> Tensor:
        """Return logits `[V]` after a text, as the model gives them by itself."""
        logits: Tensor = self.model(input_ids=torch.tensor([ids], device=self.device)).logits[0, -1].float()
        return logits

    @property
    def counts_keys(self) -> bool:
        """Whether it masks by how many keys stand before a key, so that branches push a text out of its window."""
        return self.model.config.get_text_config().model_type in _COUNT_KEYS

    def tree_nodes(self, width: int, budget: Budget | None = None) -> int:
        """Return how many nodes one tree may have over a context of `width` tokens."""
        budget = budget or self.budget
        if self.counts_keys and self.max_positions is not None:
            return min(budget.tree, self.max_positions - width)
        return budget.tree

    def _context_bytes(self, width: int) -> int:
        """Return about how many bytes the keys and values of `width` tokens take."""
        config = self.model.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(2 * config.num_hidden_layers * shared * head * width * self.model.dtype.itemsize)

    def _forward(self, plan: Plan) -> Any:
        """Run one pass: the only place that makes masks and positions."""
        inputs, past = plan.inputs, plan.past
        assert plan.sees is not None
        seen = plan.sees.to(inputs.device) & plan.valid[:, None, :]
        # A new token's position counts what stands before and its own real ancestors, so padding moves nothing.
        # OpenVINO sums whole numbers wrongly in batches of more rows than a row has tokens; floats count as well.
        positions = seen.to(torch.float32).sum(-1).to(torch.long) - 1
        allowed = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
        layers: Sequence[tuple[Tensor, Tensor]] = ()
        if past is not None:
            before = past.lengths[:, None] + past.prefix_length
            positions = positions + (before if plan.sees_past is None else before * plan.sees_past)
        if past is not None and past.seen:
            # What stands before is padded on the right; a prefix stands behind it and is seen by all.
            real = torch.arange(past.width, device=inputs.device) < past.lengths[:, None]
            real = functional.pad(real, (0, past.prefix_length), value=True)[:, None, :]
            if plan.sees_past is not None:
                real = real & plan.sees_past[:, None]
            allowed = torch.cat([real.expand(allowed.shape[0], allowed.shape[1], -1), allowed], dim=-1)
            layers = past.with_prefix()
        mask = torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device)
        mask.masked_fill_(~allowed, torch.finfo(inputs.dtype).min)
        is_shared = self._shares_context and len(layers) > 0
        with attending_to(self.model, layers) if is_shared else nullcontext():
            return self.model(
                inputs_embeds=inputs,
                attention_mask=mask[:, None],
                position_ids=positions.clamp(min=0),
                past_key_values=None if is_shared or not layers else cache_of(layers),
                use_cache=False,
            )

    @torch.no_grad()
    def read_states(self, token_ids: Sequence[int]) -> Tensor:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` of a text that is read alone."""
        return self._read([tuple(token_ids)]).states()[0]

    @torch.no_grad()
    def _read(self, texts: Sequence[tuple[int, ...]], opening: Tensor | None = None) -> Past:
        """Read sequences of ids in one pass; `opening` is of what all begin with, as in `Context`.

        They are padded on the right, where no real token of a causal model sees the padding: the model's own mask and
        positions hold.
        """
        if opening is not None:
            return self._read_behind(opening, texts)
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        layers = self.model.base_model(input_ids=ids.to(self.device), use_cache=True).past_key_values.layers
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        return Past([(layer.keys, layer.values) for layer in layers], lengths)

    def _shared_opening(self, renderer: Renderer) -> Tensor | None:
        """Return the keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` of a task's examples; None for none.

        None too where attention takes no keys and values from outside: such texts are read whole.
        """
        ids = renderer.shared_ids
        return self.read_states(ids) if ids and self._shares_context else None

    @torch.no_grad()
    def _read_behind(self, opening: Tensor, texts: Sequence[tuple[int, ...]]) -> Past:
        """Read sequences of ids that all begin with those that an opening was read from; return all of each."""
        shared = opening.shape[3]
        past = Past.repeated(opening, torch.full((len(texts),), shared, device=self.device))
        own = [text[shared:] for text in texts]
        width = max(map(len, own))
        if not width:
            return past
        ids, valid = torch.zeros(len(own), width, dtype=torch.long), torch.zeros(len(own), width, dtype=torch.bool)
        for row, text in enumerate(own):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
            valid[row, : len(text)] = True
        before_it = torch.ones(width, width, dtype=torch.bool).tril()
        # No logits are wanted, so one position stands for all.
        plan = Plan(
            inputs=self.embed(ids),
            valid=valid.to(self.device),
            pick=lambda hidden: hidden[:, :1],
            sees=before_it,
            past=past,
        )
        with keeping(self.model) as kept:
            self.run(plan, feature_columns())
        pairs = zip(past.layers, (kept[layer] for layer in sorted(kept)), strict=True)
        layers = [(torch.cat([k, new[0]], dim=2), torch.cat([v, new[1]], dim=2)) for (k, v), new in pairs]
        return Past(layers, past.lengths + torch.tensor([len(text) for text in own], device=self.device))

    @torch.no_grad()
    def _past(self, texts: Rows, lead: int) -> Past:
        """Return the keys and values before the prompt of some rows, without each row's last `lead`."""
        pieces, states, opening = texts.pieces, texts.states, texts.opening
        lengths = torch.tensor([max(0, len(piece.before) - lead) for piece in pieces], device=self.device)
        if not lengths.any():
            return Past([], lengths)
        if opening is not None and int(lengths.max()) <= opening.shape[3]:
            return Past.repeated(opening, lengths).rows(0, len(pieces))
        absent = [n for n, piece in enumerate(pieces) if piece.before and states[n] is None]
        distinct = list(dict.fromkeys(pieces[n].before for n in absent))
        fresh = self._read(distinct, opening) if absent else None
        if fresh is not None and len(distinct) == len(pieces):
            return Past(fresh.layers, lengths).rows(0, len(pieces))
        known = {n: state for n, state in enumerate(states) if state is not None}
        if fresh is not None:
            found = dict(zip(distinct, fresh.states(), strict=True))
            known |= {n: found[pieces[n].before] for n in absent}
        return Past(padded(known, len(pieces)), lengths).rows(0, len(pieces))


def _rope_limit(config: Any) -> int | None:
    """Return the length beyond which a model encodes positions otherwise, for all tokens of the input; or None."""
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]
    if not any(rope.get("rope_type") in ("longrope", "dynamic") for rope in ropes):
        return None
    lengths = [rope.get("original_max_position_embeddings") for rope in ropes]
    lengths.append(getattr(config, "original_max_position_embeddings", None))
    return min((length for length in lengths if length), default=None)
