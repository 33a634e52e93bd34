"""Bidirectional encoders: masked language models, and any model with a class head trained on top.

Every token of an encoder sees the prompt, so nothing can be kept between prompts: each pass reads whole inputs, in
length-sorted batches. All passes go through `EncoderBackbone._forward`, the one place that knows about placement,
mask and pooling.
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

from cuecraft.backbone.base import Context, FrozenModel, Prompt, restore_order, token_batches
from cuecraft.backbone.readout import LabelReadout
from cuecraft.backbone.rendering import HeadKind, Pieces, Renderer
from cuecraft.errors import BackboneError, PromptError
from cuecraft.task import Example, Task

_TOKENS = 4096  # tokens of one pass, padding included


class Pooling(StrEnum):
    """Which hidden states of the last layer become the features of a text."""

    MEAN = "mean"  # over all tokens but the tuned ones
    CLS = "cls"  # the first token
    LAST = "last"  # the last token: decoders


class EncoderBackbone(FrozenModel):
    """What the encoders share; a subclass says what is read off the output."""

    @torch.no_grad()
    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Render the examples; an encoder keeps nothing else, whatever `keep_bytes`."""
        renderer = self.renderer(task)
        pieces = tuple(renderer.render(examples))
        renderer.check_length(pieces, 0)
        return Context(renderer, pieces, (None,) * len(pieces))

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self._classify(self._run(context, self._vectors(prompt)[None]), prompt)[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples."""
        return torch.stack([self.class_logits(context, prompt) for prompt in prompts])

    @torch.no_grad()
    def score_candidates(self, context: Context, prompt: Prompt, position: int, token_ids: Sequence[int]) -> Tensor:
        """Return class logits `[K, B, C]` with each candidate token in turn at one position of the prompt."""
        vectors = self._vectors(prompt).repeat(len(token_ids), 1, 1)
        vectors[:, position] = self.embed(self._token_ids(token_ids)).to(vectors.dtype)
        return self._classify(self._run(context, vectors), prompt)

    def _run(self, context: Context, vectors: Tensor) -> Tensor:
        """Run K cues `[K, S, d]` with B examples each, in length-sorted batches; return what is read `[K, B, X]`."""
        if not len(context) or not len(vectors):
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        count, size = len(context), vectors.shape[1]
        context.renderer.check_length(context.pieces, size)
        lengths = [len(piece) + size for piece in context.pieces] * len(vectors)
        batches = list(token_batches(lengths, _TOKENS))
        parts = []
        for batch in batches:
            pieces = [context.pieces[n % count] for n in batch]
            parts.append(self._read(context.renderer, pieces, vectors[[n // count for n in batch]]))
        flat = restore_order(parts, batches, dim=0)
        return flat.reshape(len(vectors), count, -1)

    @abstractmethod
    def _read(self, renderer: Renderer, pieces: Sequence[Pieces], vectors: Tensor) -> Tensor:
        """Run one batch of inputs with a cue each `[b, S, d]`; return what is read `[b, X]`."""

    @abstractmethod
    def _classify(self, read: Tensor, prompt: Prompt) -> Tensor:
        """Turn what was read `[K, B, X]` into class logits `[K, B, C]`."""

    def _forward(self, pieces: Sequence[Pieces], vectors: Tensor) -> _Pass:
        """Lay out one pass, right-padded: the only place that places tokens, vectors and masks."""
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
        return _Pass(
            {
                "inputs_embeds": self.embed(ids).index_put(place, vectors),
                "attention_mask": mask.to(self.device),
            },
            text.to(self.device),
        )


@dataclass(frozen=True, eq=False)
class _Pass:
    """Inputs of the model for one batch, and which positions `[b, L]` hold text (neither padding nor cue)."""

    inputs: dict[str, Tensor]
    text: Tensor


class MaskedBackbone(EncoderBackbone):
    """A masked language model that answers with the word at its mask."""

    head_kind = HeadKind.MASKED

    def _read(self, renderer: Renderer, pieces: Sequence[Pieces], vectors: Tensor) -> Tensor:
        size = vectors.shape[1]
        slots = [p.answer + (size if p.answer >= len(p.before) else 0) for p in pieces]
        readout = LabelReadout(self.model, renderer.label_ids)
        with readout.reading(torch.tensor(slots)[:, None]):
            logits = self.model(**self._forward(pieces, vectors).inputs).logits
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
        return self._run(context, self._vectors(prompt)[None])[0]

    def _read(self, renderer: Renderer, pieces: Sequence[Pieces], vectors: Tensor) -> Tensor:
        laid_out = self._forward(pieces, vectors)
        hidden: Tensor = self.model(**laid_out.inputs).last_hidden_state
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
