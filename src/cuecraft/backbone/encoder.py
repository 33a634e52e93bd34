"""Bidirectional encoders: masked language models, and any model with a class head trained on top.

Every token of an encoder sees the prompt, so nothing can be kept between prompts: each pass reads whole inputs, in
length-sorted batches. All passes are laid out by `EncoderBackbone._lay_out`, the one place that knows about placement
and mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.attention import attending_to, keeping
from cuecraft.backbone.base import ClassHead, Context, Prompt, ReadyPrompt, Row, Swap
from cuecraft.backbone.budget import Budget, restore_order
from cuecraft.backbone.columns import (
    FeatureReadout,
    LabelReadout,
    MixedReadout,
    Readout,
    WordReadout,
    class_scores,
    readout,
)
from cuecraft.backbone.cues import VectorTable
from cuecraft.backbone.encoder_rows import Cues, LaidOut, RowCues, mask_slots
from cuecraft.backbone.frozen import FrozenModel, agree
from cuecraft.backbone.hooks import adding, passing
from cuecraft.core.deadline import check_time
from cuecraft.core.errors import BackboneError, PromptError
from cuecraft.task import Example, Task
from cuecraft.task.batches import padding_share, token_batches
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

_PROBED = (5, 6, 7)  # columns of the vocabulary that a new backbone's logits are compared in


class Pooling(StrEnum):
    """Which hidden states of the last layer become the features of a text."""

    MEAN = "mean"  # over all tokens but the tuned ones
    CLS = "cls"  # the first token
    LAST = "last"  # the last token: decoders


class EncoderBackbone(FrozenModel):
    """What the encoders share; a subclass says what is read off the output."""

    @torch.no_grad()
    def check(self) -> None:
        """Raise BackboneError where what is read of a text depends on its padding, or is not the model's."""
        ids = self._sample_ids(5)
        pieces = [Pieces(tuple(ids), ()), Pieces(tuple(ids[1:3]), ())]
        no_cue = RowCues([0] * len(pieces), self.embed(torch.zeros(0, dtype=torch.long)))
        found = self._probe(self._lay_out(pieces, no_cue), pieces).float()
        plain = torch.cat([self._plain(piece) for piece in pieces])
        if not agree(found, plain, self.name):
            raise BackboneError(
                f"{self.name} ({self.model.config.model_type}) cannot be used as a {self.head_kind} backbone: "
                "it does not answer alike with and without padding; use another model or head"
            )

    @abstractmethod
    def _probe(self, laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
        """Return something read off the output for a padded batch without a cue `[b, X]`."""

    @abstractmethod
    def _plain(self, piece: Pieces) -> Tensor:
        """Return the same for one text `[1, X]`, as the model gives it by itself."""

    @torch.no_grad()
    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Render the examples; an encoder keeps nothing else, whatever `keep_bytes`."""
        renderer = self.renderer(task)
        pieces = tuple(renderer.render(examples))
        renderer.check_length(pieces, 0)
        lengths = [len(piece) for piece in pieces]
        padding = padding_share((lengths, list(token_batches(lengths, self.budget))))
        return Context(renderer, tuple(examples), pieces, (None,) * len(pieces), padding)

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self._scores(context, self._cues(prompt), prompt.head)[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples."""
        return torch.stack([self.class_logits(context, prompt) for prompt in prompts])

    def share_passes(self, parts: Sequence[tuple[Context, Prompt]]) -> bool:
        """Return whether `class_logits_each` reads these together: prompts of one task without prefixes.

        Either all of them have a class head or none.
        """
        first = parts[0][0].renderer
        return len({prompt.head is None for _, prompt in parts}) == 1 and all(
            context.renderer is first and prompt.states is None for context, prompt in parts
        )

    def class_logits_each(self, parts: Sequence[tuple[Context, Prompt]]) -> list[Tensor]:
        """Return class logits `[B, C]` of several prompts, each over examples of its own; differentiable."""
        if not self.share_passes(parts):
            return super().class_logits_each(parts)
        cues = [self._cues(prompt) for _, prompt in parts]
        texts = [piece for context, _ in parts for piece in context.pieces]
        owners = [number for number, (context, _) in enumerate(parts) for _ in range(len(context))]
        for own, (context, _) in zip(cues, parts, strict=True):
            context.renderer.check_length(context.pieces, own.length)
        lengths = [len(piece) + cues[number].length for piece, number in zip(texts, owners, strict=True)]
        has_heads = parts[0][1].head is not None
        read = self._reading(parts[0][0].renderer, has_heads)

        def run(budget: Budget) -> Tensor:
            shares = [budget.charge(length, self._pass_bytes(0, length)) for length in lengths]
            batches = list(token_batches(lengths, budget, shares))
            found = []
            for batch in batches:
                check_time()
                pieces, own = [texts[n] for n in batch], [cues[owners[n]] for n in batch]
                table = VectorTable.of([cue.vectors[0] for cue in own], [cue.offsets for cue in own])
                rows = RowCues([cue.vectors.shape[1] for cue in own], table.vectors, table.offsets)
                found.append(read(self._lay_out(pieces, rows), pieces))
            return restore_order(found, batches, dim=0)

        scores = self._score_within_memory(run).split([len(context) for context, _ in parts])
        heads = [prompt.head for _, prompt in parts]
        return [own if head is None else class_scores(own, head) for own, head in zip(scores, heads, strict=True)]

    @abstractmethod
    def _reading(self, renderer: Renderer, has_heads: bool) -> Callable[[LaidOut, Sequence[Pieces]], Tensor]:
        """Return what reads class logits of one batch `[b, C]`; for class heads the features `[b, d]`."""

    @abstractmethod
    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return what a class head reads `[B, d]`, differentiable with respect to the prompt's tensors."""

    @torch.no_grad()
    def read_states(self, token_ids: Sequence[int]) -> Tensor:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` of a text that is read alone.

        Raises:
            BackboneError: the model's attention does not show them.
        """
        layers = self.layers
        try:
            with keeping(self.model) as kept:
                self.model(input_ids=torch.tensor([list(token_ids)], device=self.device))
        except (AttributeError, ValueError):  # an attention that lies outside of the layers, or a name it does not know
            kept = {}
        if len(kept) != len(layers):
            raise BackboneError(
                f"the attention of {self.name} ({self.model.config.model_type}) takes no keys and values from "
                "outside; use another method"
            )
        return torch.stack([torch.stack([part[0] for part in kept[number]]) for number in sorted(kept)])

    @torch.no_grad()
    def score_swaps(self, context: Context, prompt: Prompt, swaps: Sequence[Swap]) -> Tensor:
        """Return class logits `[K, B, C]` with each swap (position, token id) made alone; no gradient."""
        cues = self._cues(prompt)
        checked = self._checked_swaps(swaps, cues.vectors.shape[1])
        vectors = cues.vectors.repeat(len(checked), 1, 1)
        if checked:
            positions, tokens = (torch.tensor(part, dtype=torch.long) for part in zip(*checked, strict=True))
            vectors[torch.arange(len(checked)), positions] = self.embed(tokens).to(vectors.dtype)
        return self._scores(context, replace(cues, vectors=vectors), prompt.head)

    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `mixed_logits` takes it.

        Raises:
            PromptError: it does not fit the backbone.
            TemplateError, LabelWordError: the task does not fit the backbone.
        """
        renderer, cues = self.renderer(task), self._cues(prompt)
        reads = self._ready_reads(renderer, prompt.head)
        return ReadyPrompt(renderer, cues.vectors[0], cues.offsets, cues.states, prompt.head, reads=reads)

    @torch.no_grad()
    def mixed_logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own; no gradient.

        Rows share passes with rows whose prefixes are as long as their own, or that have none too.

        Raises:
            PromptError: a prompt and its text are longer than the backbone's positions.
        """
        groups: dict[int, list[int]] = {}
        for number, (prompt, piece) in enumerate(rows):
            prompt.renderer.check_length([piece], prompt.length)
            groups.setdefault(prompt.length - len(prompt.vectors), []).append(number)

        def run(budget: Budget) -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for group in groups.values():
                lengths = [len(rows[n][1]) + rows[n][0].length for n in group]
                shares = [budget.charge(length, self._pass_bytes(0, length)) for length in lengths]
                for batch in token_batches(lengths, budget, shares):
                    own = [group[n] for n in batch]
                    chosen = [rows[n] for n in own]
                    cues = RowCues.of([prompt for prompt, _ in chosen])
                    laid_out = self._lay_out([piece for _, piece in chosen], cues)
                    found |= zip(own, self._read_rows(laid_out, chosen), strict=True)
            return [found[n][: prompt.num_classes] for n, (prompt, _) in enumerate(rows)]

        return self.within_memory(run)

    @abstractmethod
    def _read_rows(self, laid_out: LaidOut, rows: Sequence[Row]) -> Sequence[Tensor]:
        """Run one batch; return what each row's prompt reads of it, its class scores first."""

    @abstractmethod
    def _ready_reads(self, renderer: Renderer, head: ClassHead | None) -> Readout | None:
        """Return what reads a prompt's answers at its mask; None where features are pooled."""

    def _cues(self, prompt: Prompt) -> Cues:
        vectors = self._vectors(prompt)
        return Cues(vectors[None], self._offsets(prompt, len(vectors)), self._states(prompt))

    @abstractmethod
    def _scores(self, context: Context, cues: Cues, head: ClassHead | None) -> Tensor:
        """Return class logits `[K, B, C]` of K cues with B examples each."""

    def _run(
        self,
        context: Context,
        cues: Cues,
        read: Callable[[LaidOut, Sequence[Pieces]], Tensor],
        slot_bytes: int = 0,
    ) -> Tensor:
        """Run K cues with B examples each, in length-sorted batches; return what is read `[K, B, X]`.

        Args:
            context: the examples.
            cues: the cues.
            read: runs one batch and returns what is wanted of it `[b, X]`.
            slot_bytes: bytes that this takes for each row, beyond what any pass takes.
        """
        if not len(context) or not len(cues.vectors):
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        context.renderer.check_length(context.pieces, cues.length)
        return self._run_texts(context.pieces, cues, read, slot_bytes)

    def _run_texts(
        self,
        texts: Sequence[Pieces],
        cues: Cues,
        read: Callable[[LaidOut, Sequence[Pieces]], Tensor],
        slot_bytes: int,
    ) -> Tensor:
        """Run K cues with B texts each; return what is read `[K, B, X]`; arguments as in `_run`."""
        prompts, count = len(cues.vectors), len(texts)
        lengths = [len(piece) + cues.length for piece in texts] * prompts

        def run(budget: Budget) -> Tensor:
            shares = [budget.charge(length, self._pass_bytes(0, length) + slot_bytes) for length in lengths]
            batches = list(token_batches(lengths, budget, shares))
            parts = []
            for batch in batches:
                check_time()
                pieces = [texts[n % count] for n in batch]
                laid_out = self._lay_out(pieces, cues.rows([n // count for n in batch]))
                parts.append(read(laid_out, pieces))
            return restore_order(parts, batches, dim=0)

        return self._score_within_memory(run).reshape(prompts, count, -1)

    def run_pass(self, laid_out: LaidOut) -> Any:
        """Run the model on one batch."""
        states = laid_out.states
        attending = nullcontext() if states is None else attending_to(self.model, [(own[0], own[1]) for own in states])
        with passing(change=laid_out.change), attending:
            return self.model(**laid_out.inputs)

    def _lay_out(self, pieces: Sequence[Pieces], cues: RowCues) -> LaidOut:
        """Lay out one batch with a cue for each row, right-padded: the only place that places tokens and masks.

        A prefix takes no position: in a bidirectional model it stands nowhere in particular.
        """
        width = max(len(piece) + size for piece, size in zip(pieces, cues.sizes, strict=True))
        ids = torch.zeros(len(pieces), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        places = []
        for row, (piece, size) in enumerate(zip(pieces, cues.sizes, strict=True)):
            start, stop = len(piece.before), len(piece) + size
            ids[row, :start] = torch.tensor(piece.before, dtype=torch.long)
            ids[row, start + size : stop] = torch.tensor(piece.after, dtype=torch.long)
            mask[row, :stop] = 1
            places += [(row, column) for column in range(start, start + size)]
        text = mask.clone()
        inputs = self.embed(ids)
        change = None
        if places:
            rows, columns = torch.tensor(places).unbind(1)
            text[rows, columns] = 0
            at = (rows.to(self.device), columns.to(self.device))
            inputs = inputs.index_put(at, cues.vectors)
            change = None if cues.offsets is None else adding(cues.offsets, *at)
        batch = {"inputs_embeds": inputs, "attention_mask": mask.to(self.device)}
        return LaidOut(batch, text.to(self.device), cues.sizes, change, cues.states)


class MaskedBackbone(EncoderBackbone):
    """A masked language model that answers with the word at its mask."""

    head_kind = HeadKind.MASKED

    def _probe(self, laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
        columns = tuple(((column,),) for column in _PROBED)
        return self._read(laid_out, [len(piece) - 1 for piece in pieces], LabelReadout(self.model, columns))

    def _plain(self, piece: Pieces) -> Tensor:
        logits: Tensor = self.model(input_ids=torch.tensor([piece.before], device=self.device)).logits[:, -1]
        return logits[:, list(_PROBED)].float()

    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return the states at the mask `[B, d]`, as the output embedding gets them; differentiable."""
        return self.read_answer(context, prompt, FeatureReadout(self.model))

    def read_answer(self, context: Context, prompt: Prompt, reads: Readout) -> Tensor:
        """Return what a readout reads at the masks `[B, X]`."""
        return self._at_masks(context, self._cues(prompt), reads)[0]

    def read_blanks(self, blanks: Sequence[Pieces], tokens: Sequence[int]) -> Tensor:
        """Return the log-probability `[N]` of one token each at the masks of whole inputs."""
        reads = WordReadout(self.model)
        wanted = {id(piece): token for piece, token in zip(blanks, tokens, strict=True)}

        def read(laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
            found = self._read(laid_out, [piece.answer for piece in pieces], reads)
            return found.gather(1, torch.tensor([[wanted[id(piece)]] for piece in pieces], device=found.device))

        no_cue = Cues(self.embed(torch.zeros(1, 0, dtype=torch.long)))
        return self._run_texts(blanks, no_cue, read, reads.slot_bytes)[0, :, 0]

    def _scores(self, context: Context, cues: Cues, head: ClassHead | None) -> Tensor:
        return self._at_masks(context, cues, readout(self.model, context.renderer.label_ids, head))

    def _at_masks(self, context: Context, cues: Cues, reads: Readout) -> Tensor:
        """Return what is read at the mask of each input `[K, B, X]`."""
        return self._run(context, cues, partial(self._read_masks, reads), reads.slot_bytes)

    def _reading(self, renderer: Renderer, has_heads: bool) -> Callable[[LaidOut, Sequence[Pieces]], Tensor]:
        reads = FeatureReadout(self.model) if has_heads else LabelReadout(self.model, renderer.label_ids)
        return partial(self._read_masks, reads)

    def _read_masks(self, reads: Readout, laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
        """Run one batch; return what is read at the mask of each row `[b, X]`."""
        return self._read(laid_out, mask_slots(laid_out, pieces), reads)

    def _read_rows(self, laid_out: LaidOut, rows: Sequence[Row]) -> Sequence[Tensor]:
        reads = MixedReadout(self.model, [prompt.reads for prompt, _ in rows])
        return list(self._read_masks(reads, laid_out, [piece for _, piece in rows]))

    def _ready_reads(self, renderer: Renderer, head: ClassHead | None) -> Readout:
        return readout(self.model, renderer.label_ids, head)

    def _read(self, laid_out: LaidOut, slots: Sequence[int], reads: Readout) -> Tensor:
        """Run one batch; return what is read at one slot of each row `[b, X]`."""
        with reads.reading(torch.tensor(slots)[:, None]) as scores:
            logits = self.run_pass(laid_out).logits
        return scores(logits)[0]


class SequenceBackbone(EncoderBackbone):
    """A model without a language head: pooled features, and a class head that is trained with the prompt.

    Args:
        model: an ``AutoModel``.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
        pooling: what becomes of the last layer's hidden states.
    """

    head_kind = HeadKind.SEQUENCE

    def __init__(self, model: Any, tokenizer: Any, name: str, fingerprint: Callable[[], str], pooling: Pooling) -> None:
        super().__init__(model, tokenizer, name, fingerprint)
        self.pooling = pooling

    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return pooled features `[B, d]`, differentiable with respect to the prompt's tensors."""
        return self._run(context, self._cues(prompt), self._pooled)[0]

    def _scores(self, context: Context, cues: Cues, head: ClassHead | None) -> Tensor:
        return class_scores(self._run(context, cues, self._pooled), self._required(head))

    def _reading(self, renderer: Renderer, has_heads: bool) -> Callable[[LaidOut, Sequence[Pieces]], Tensor]:
        if not has_heads:
            self._required(None)
        return self._pooled

    def _required(self, head: ClassHead | None) -> ClassHead:
        if head is None:
            raise PromptError(
                f"{self.name} has no language head and the prompt brings no class head; tune it first "
                "(zero-shot needs a causal or masked language model)"
            )
        return head

    def _ready_reads(self, renderer: Renderer, head: ClassHead | None) -> None:
        self._required(head)

    def _read_rows(self, laid_out: LaidOut, rows: Sequence[Row]) -> Sequence[Tensor]:
        features = self.pooled(laid_out)
        pairs = zip(features, rows, strict=True)
        return [class_scores(own, self._required(prompt.head)) for own, (prompt, _) in pairs]

    def _probe(self, laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
        hidden: Tensor = self.run_pass(laid_out).last_hidden_state
        return torch.stack([row[: len(piece)].mean(0) for row, piece in zip(hidden, pieces, strict=True)])

    def _plain(self, piece: Pieces) -> Tensor:
        ids = torch.tensor([piece.before], device=self.device)
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.mean(1).float()

    def _pooled(self, laid_out: LaidOut, pieces: Sequence[Pieces]) -> Tensor:
        return self.pooled(laid_out)

    def pooled(self, laid_out: LaidOut) -> Tensor:
        """Run one batch; return pooled features `[b, d]`."""
        hidden: Tensor = self.run_pass(laid_out).last_hidden_state
        if self.pooling is Pooling.CLS:
            return hidden[:, 0]
        if self.pooling is Pooling.LAST:
            last = laid_out.inputs["attention_mask"].sum(1) - 1
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weights = laid_out.text.to(hidden.dtype)
        return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
