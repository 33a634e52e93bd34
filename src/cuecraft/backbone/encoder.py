"""Bidirectional encoders: masked language models, and any model with a class head trained on top.

Every token of an encoder sees the prompt, so nothing can be kept between prompts: each pass reads whole inputs, in
length-sorted batches. All passes are laid out by `EncoderBackbone._lay_out`, the one place that knows about placement
and mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone.base import Context, Prompt, Swap
from cuecraft.backbone.batching import Budget, padding_share, restore_order, token_batches
from cuecraft.backbone.frozen import FrozenModel, agree
from cuecraft.backbone.layers import entering
from cuecraft.backbone.readout import LabelReadout
from cuecraft.backbone.rendering import HeadKind, LabelIds, Pieces, Renderer
from cuecraft.errors import BackboneError, PromptError
from cuecraft.task import Example, Task

_PROBED = (5, 6, 7)  # columns of the vocabulary that a new backbone's logits are compared in


class Pooling(StrEnum):
    """Which hidden states of the last layer become the features of a text."""

    MEAN = "mean"  # over all tokens but the tuned ones
    CLS = "cls"  # the first token
    LAST = "last"  # the last token: decoders


@dataclass(frozen=True, eq=False)
class _Cues:
    """What stands in the prompt slot of each input of a run.

    Args:
        vectors: `[K, S, d]` K prompts.
        offsets: `[n_layers, S, d]` added to the hidden states entering each layer, for all K; None for nothing.
    """

    vectors: Tensor
    offsets: Tensor | None


class EncoderBackbone(FrozenModel):
    """What the encoders share; a subclass says what is read off the output."""

    @torch.no_grad()
    def check(self) -> None:
        """Raise BackboneError where what is read of a text depends on the padding beside it, or is not the model's."""
        ids = self._sample_ids(5)
        pieces = [Pieces(tuple(ids), ()), Pieces(tuple(ids[1:3]), ())]
        no_cue = self.embed(torch.zeros(len(pieces), 0, dtype=torch.long))
        found = self._probe(self._lay_out(pieces, no_cue, None), pieces).float()
        if not agree(found, torch.cat([self._plain(piece) for piece in pieces])):
            raise BackboneError(
                f"{self.name} ({self.model.config.model_type}) cannot be used as a {self.head_kind} backbone: "
                "it does not answer alike with and without padding"
            )

    @abstractmethod
    def _probe(self, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
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
        padding = padding_share((lengths, list(token_batches(lengths, self.budget.tokens))))
        return Context(renderer, pieces, (None,) * len(pieces), padding)

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self._classify(self._run(context, self._cues(prompt)), prompt)[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples."""
        return torch.stack([self.class_logits(context, prompt) for prompt in prompts])

    @torch.no_grad()
    def score_swaps(self, context: Context, prompt: Prompt, swaps: Sequence[Swap]) -> Tensor:
        """Return class logits `[K, B, C]` with each swap (position, token id) made alone; no gradient."""
        cues = self._cues(prompt)
        checked = self._checked_swaps(swaps, cues.vectors.shape[1])
        vectors = cues.vectors.repeat(len(checked), 1, 1)
        if checked:
            positions, tokens = (torch.tensor(part, dtype=torch.long) for part in zip(*checked, strict=True))
            vectors[torch.arange(len(checked)), positions] = self.embed(tokens).to(vectors.dtype)
        return self._classify(self._run(context, _Cues(vectors, cues.offsets)), prompt)

    def _cues(self, prompt: Prompt) -> _Cues:
        vectors = self._vectors(prompt)
        return _Cues(vectors[None], self._offsets(prompt, len(vectors)))

    def _run(self, context: Context, cues: _Cues) -> Tensor:
        """Run K cues with B examples each, in length-sorted batches; return what is read `[K, B, X]`."""
        prompts, count = len(cues.vectors), len(context)
        if not count or not prompts:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        size = cues.vectors.shape[1]
        context.renderer.check_length(context.pieces, size)
        lengths = [len(piece) + size for piece in context.pieces] * prompts

        def run(budget: Budget) -> Tensor:
            costs = [budget.charge(length, self._pass_bytes(0, length)) for length in lengths]
            batches = list(token_batches(costs, budget.tokens))
            parts = []
            for batch in batches:
                pieces = [context.pieces[n % count] for n in batch]
                vectors = cues.vectors[[n // count for n in batch]]
                parts.append(self._read(context.renderer, self._lay_out(pieces, vectors, cues.offsets), pieces))
            return restore_order(parts, batches, dim=0)

        return self._score_within_memory(run).reshape(prompts, count, -1)

    @abstractmethod
    def _read(self, renderer: Renderer, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
        """Run one batch; return what is read `[b, X]`."""

    @abstractmethod
    def _classify(self, read: Tensor, prompt: Prompt) -> Tensor:
        """Turn what was read `[K, B, X]` into class logits `[K, B, C]`."""

    def _forward(self, laid_out: _Pass) -> Any:
        """Run the model on one batch."""
        layers = () if laid_out.change is None else self.layers
        with entering(layers, laid_out.change):
            return self.model(**laid_out.inputs)

    def _lay_out(self, pieces: Sequence[Pieces], vectors: Tensor, offsets: Tensor | None) -> _Pass:
        """Lay out one batch, right-padded: the only place that places tokens, vectors, offsets and masks."""
        size = vectors.shape[1]
        ids = torch.zeros(len(pieces), max(map(len, pieces)) + size, dtype=torch.long)
        mask = torch.zeros_like(ids)
        text = torch.zeros_like(ids)
        columns = torch.empty(len(pieces), size, dtype=torch.long)
        for row, piece in enumerate(pieces):
            start, stop = len(piece.before), len(piece) + size
            ids[row, :start] = torch.tensor(piece.before, dtype=torch.long)
            ids[row, start + size : stop] = torch.tensor(piece.after, dtype=torch.long)
            mask[row, :stop] = 1
            text[row, :stop] = 1
            columns[row] = torch.arange(start, start + size)
            text[row, columns[row]] = 0
        rows = torch.arange(len(ids))[:, None].expand_as(columns)
        place = (rows.to(self.device), columns.to(self.device))

        def change(layer: int, hidden: Tensor) -> Tensor:
            assert offsets is not None
            return hidden.index_put(place, offsets[layer].expand(len(ids), -1, -1), accumulate=True)

        return _Pass(
            {
                "inputs_embeds": self.embed(ids).index_put(place, vectors),
                "attention_mask": mask.to(self.device),
            },
            text.to(self.device),
            size,
            None if offsets is None else change,
        )


@dataclass(frozen=True, eq=False)
class _Pass:
    """One batch, laid out.

    Args:
        inputs: what the model is called with.
        text: `[b, L]` which positions hold text (neither padding nor cue).
        size: tokens of the cue, S.
        change: what happens to the hidden states entering each layer; None for nothing.
    """

    inputs: dict[str, Tensor]
    text: Tensor
    size: int
    change: Callable[[int, Tensor], Tensor] | None


class MaskedBackbone(EncoderBackbone):
    """A masked language model that answers with the word at its mask."""

    head_kind = HeadKind.MASKED

    def _probe(self, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
        columns = tuple(((column,),) for column in _PROBED)
        return self._scores(laid_out, [len(piece) - 1 for piece in pieces], columns)

    def _plain(self, piece: Pieces) -> Tensor:
        logits: Tensor = self.model(input_ids=torch.tensor([piece.before], device=self.device)).logits[:, -1]
        return logits[:, list(_PROBED)].float()

    def _read(self, renderer: Renderer, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
        size = laid_out.size
        slots = [p.answer + (size if p.answer >= len(p.before) else 0) for p in pieces]
        return self._scores(laid_out, slots, renderer.label_ids)

    def _scores(self, laid_out: _Pass, slots: Sequence[int], label_ids: LabelIds) -> Tensor:
        """Return class scores `[b, C]` at one slot of each row."""
        readout = LabelReadout(self.model, label_ids)
        with readout.reading(torch.tensor(slots)[:, None]):
            logits = self._forward(laid_out).logits
        return readout.class_scores(logits)[0]

    def _classify(self, read: Tensor, prompt: Prompt) -> Tensor:
        return read


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
        return self._run(context, self._cues(prompt))[0]

    def _probe(self, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
        hidden: Tensor = self._forward(laid_out).last_hidden_state
        return torch.stack([row[: len(piece)].mean(0) for row, piece in zip(hidden, pieces, strict=True)])

    def _plain(self, piece: Pieces) -> Tensor:
        ids = torch.tensor([piece.before], device=self.device)
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.mean(1).float()

    def _read(self, renderer: Renderer, laid_out: _Pass, pieces: Sequence[Pieces]) -> Tensor:
        hidden: Tensor = self._forward(laid_out).last_hidden_state
        if self.pooling is Pooling.CLS:
            return hidden[:, 0]
        if self.pooling is Pooling.LAST:
            last = laid_out.inputs["attention_mask"].sum(1) - 1
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        weights = laid_out.text.to(hidden.dtype)
        return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

    def _classify(self, read: Tensor, prompt: Prompt) -> Tensor:
        if prompt.head is None:
            raise PromptError(
                f"{self.name} has no language head and the prompt brings no class head; tune it first "
                "(zero-shot needs a causal or masked language model)"
            )
        weight, bias = (t.to(read.device) for t in (prompt.head.weight, prompt.head.bias))
        return functional.linear(read.to(weight.dtype), weight, bias)
