"""Bidirectional encoders: masked language models, and any model with a class head trained on top.

Every token of an encoder sees the prompt, so nothing can be kept between prompts: each pass reads whole inputs, in
length-sorted batches. All passes are laid out by `EncoderBackbone._lay_out`, the one place that knows about placement
and mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.agreement import agree
from cuecraft.backbone.attention import attending_to, keeping
from cuecraft.backbone.base import Backbone
from cuecraft.backbone.budget import Budget, restore_order, same_width
from cuecraft.backbone.columns import (
    Columns,
    class_scores,
    columns_of,
    feature_columns,
    in_context,
    mean_of_layers,
    of_words,
    row_columns,
    word_scores,
)
from cuecraft.backbone.hooks import passing
from cuecraft.backbone.plan import Past, Plan, Prompts, adding, at_slots
from cuecraft.backbone.prompt import ClassHead, Prompt
from cuecraft.backbone.query import FEATURES, Context, Query, ReadyPrompt, Row, Rows
from cuecraft.core.deadline import check_time
from cuecraft.core.errors import BackboneError, PromptError
from cuecraft.task import Example, Task
from cuecraft.task.alignment import UNREAD
from cuecraft.task.batches import padding_share, token_batches
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

_FEATURES = feature_columns()
_PROBED = (5, 6, 7)  # columns of the vocabulary that a new backbone's logits are compared in


class Pooling(StrEnum):
    """Which hidden states of the last layer become the features of a text."""

    MEAN = "mean"  # over all tokens but the tuned ones
    CLS = "cls"  # the first token
    LAST = "last"  # the last token: decoders


class EncoderBackbone(Backbone):
    """What the encoders share; a subclass says what is read off the output."""

    @torch.no_grad()
    def check(self) -> None:
        """Raise BackboneError where what is read of a text depends on its padding, or is not the model's."""
        ids = self._sample_ids(5)
        pieces = [Pieces(tuple(ids), (), len(ids) - 1), Pieces(tuple(ids[1:3]), (), 1)]
        found = self._probe(self._lay_out(pieces, self.no_prompt(), [0, 0]), pieces).float()
        plain = torch.cat([self._plain(piece) for piece in pieces])
        if not agree(found, plain, self.name):
            raise BackboneError(
                f"{self.name} ({self.model.config.model_type}) cannot be used as a {self.head_kind} backbone: "
                "it does not answer alike with and without padding; use another model or head"
            )

    @abstractmethod
    def _probe(self, plan: Plan, pieces: Sequence[Pieces]) -> Tensor:
        """Return something read off the output for a padded batch without a prompt `[b, X]`."""

    @abstractmethod
    def _plain(self, piece: Pieces) -> Tensor:
        """Return the same for one text `[1, X]`, as the model gives it by itself."""

    @torch.no_grad()
    def _read_ahead(self, examples: Sequence[Example], renderer: Renderer, keep_bytes: int | None) -> Context:
        """Render the examples; an encoder keeps nothing else, whatever `keep_bytes`."""
        pieces = tuple(renderer.render(examples))
        renderer.check_length(pieces, 0)
        lengths = [len(piece) for piece in pieces]
        padding = padding_share((lengths, list(token_batches(lengths, self.budget))))
        return Context(pieces, (None,) * len(pieces), renderer=renderer, examples=tuple(examples), padding=padding)

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

    def shares(self, prompts: Prompts) -> bool:
        """Return whether `read` takes prompts, each over texts of its own, together: without prefixes.

        Either all of them have a class head or none.
        """
        return len({head is None for head in prompts.heads}) == 1 and all(own is None for own in prompts.states)

    def read(self, texts: Rows, prompts: Prompts, query: Query, owners: Sequence[int] = ()) -> Tensor:
        """Return what a query reads of every text with every prompt `[T, B, X]`; as `Backbone.read`.

        Where texts have prompts of their own, they have class heads of their own too.
        """
        if not len(texts) or not prompts.codes:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        by_head = bool(owners) and query.read == "options" and prompts.heads[0] is not None
        head = prompts.heads[0] if query.read == "options" and not by_head else None
        shared = feature_columns() if by_head else None
        if shared is None and query.own is None:
            shared = self._columns(query, prompts.heads[0])
        count = 1 if owners else len(prompts.codes)
        pieces = list(texts.pieces) * count
        each = list(owners) or [n for n in range(count) for _ in range(len(texts))]
        sizes = [prompts.length_of(n) for n in range(len(prompts.codes))]
        lengths = [len(piece) + sizes[own] for piece, own in zip(pieces, each, strict=True)]
        words = _word_count(pieces)

        def run(budget: Budget) -> Tensor:
            parts, batches = [], []
            for batch in self._batches(lengths, budget, 0 if shared is None else shared.slot_bytes):
                plan = self._lay_out([pieces[n] for n in batch], prompts, [each[n] for n in batch])
                if words:
                    parts.append(self._at_words(plan, head).flatten(1))
                else:
                    rows = [n % len(texts) for n in batch]
                    columns = shared or self._columns(query.of(rows), prompts.heads[0])
                    parts.append(self.run(plan, columns.at(rows))[0])
                batches.append(batch)
            return restore_order(same_width(parts), batches, dim=0)

        found = self._score_within_memory(run)
        if words and (by_head or query.read == "features"):
            found = found.unflatten(-1, (words, -1))
        if by_head:
            # Texts of one prompt stand together.
            parts = found.split([each.count(n) for n in range(len(prompts.codes))])
            scores = word_scores if words else class_scores
            pairs = zip(parts, prompts.heads, strict=True)
            found = torch.cat([part if own is None else scores(part, own) for part, own in pairs])
        return found.reshape(count, len(texts), *found.shape[1:])

    def _at_words(self, plan: Plan, head: ClassHead | None = None) -> Tensor:
        """Return features of words in one pass `[b, R, d]`, or a class head's scores of them `[b, R * C]`."""
        assert plan.words is not None
        features = of_words(self.run(plan, _FEATURES), plan.words)
        features = in_context(features) if plan.reading == "context" else features
        return features if head is None else word_scores(features, head)

    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `read_rows` takes it; errors as of `Backbone.ready`."""
        renderer, own = self.renderer(task), self.placed(prompt)
        query = Query.for_task(renderer) if renderer.label_ids else FEATURES  # `ready_for` asks for options
        columns = self._columns(query, own.head)
        return ReadyPrompt(**vars(own), renderer=renderer, columns=columns)

    def read_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own; differentiable.

        Rows share passes with rows whose prefixes are as long as their own, or that have none too; and rows that are
        read at words with others that are read alike.

        Raises:
            PromptError: a prompt and its text are longer than the backbone's positions.
        """
        groups: dict[tuple[int, bool, str], list[int]] = {}
        for number, (prompt, piece) in enumerate(rows):
            prompt.renderer.check_length([piece], prompt.length, prompt.own)
            key = (prompt.length - len(prompt.vectors), piece.words is None, piece.reading)
            groups.setdefault(key, []).append(number)

        def run(budget: Budget) -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for group in groups.values():
                lengths = [len(rows[n][1]) + rows[n][0].length for n in group]
                for batch in self._batches(lengths, budget):
                    own = [group[n] for n in batch]
                    prompts = [rows[n][0] for n in own]
                    plan = self._lay_out([rows[n][1] for n in own], Prompts.of(prompts), range(len(own)))
                    columns = row_columns([prompt.columns for prompt in prompts])
                    read = self.run(plan, columns)[0] if plan.words is None else self._at_words(plan)
                    found |= zip(own, read, strict=True)
            return [self._answer(found[n], prompt, piece) for n, (prompt, piece) in enumerate(rows)]

        return self._score_within_memory(run)

    def _answer(self, found: Tensor, prompt: ReadyPrompt, piece: Pieces) -> Tensor:
        """Return the class logits `[C]` of one row, given what its prompt's columns read."""
        return found[: prompt.num_options]

    def _columns(self, query: Query, head: ClassHead | None) -> Columns:
        """Return the columns of a query."""
        return columns_of(self.model, query, head)

    def _batches(self, lengths: Sequence[int], budget: Budget, slot_bytes: int = 0) -> Iterator[Sequence[int]]:
        """Yield the numbers of length-sorted batches of inputs."""
        shares = [budget.charge(length, self._pass_bytes(0, length) + slot_bytes) for length in lengths]
        for batch in token_batches(lengths, budget, shares):
            check_time()
            yield batch

    def _forward(self, plan: Plan) -> Any:
        """Run the model on one batch."""
        layers = () if plan.past is None else plan.past.layers
        with attending_to(self.model, layers) if layers else nullcontext():
            return self.model(inputs_embeds=plan.inputs, attention_mask=plan.valid.to(torch.long))

    def _lay_out(self, pieces: Sequence[Pieces], prompts: Prompts, owners: Sequence[int]) -> Plan:
        """Lay out one batch with a prompt for each row, right-padded: the only place that places tokens and masks.

        What is read stands at each text's answer. A prefix takes no position: in a bidirectional model it stands
        nowhere in particular.
        """
        sizes = [len(prompts.codes[owner]) for owner in owners]
        width = max(len(piece) + size for piece, size in zip(pieces, sizes, strict=True))
        ids = torch.zeros(len(pieces), width, dtype=torch.long)
        valid = torch.zeros_like(ids, dtype=torch.bool)
        places, slots = [], []
        for row, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
            start, stop = len(piece.before), len(piece) + size
            ids[row, :start] = torch.tensor(piece.before, dtype=torch.long)
            ids[row, start + size : stop] = torch.tensor(piece.after, dtype=torch.long)
            valid[row, :stop] = True
            places += [(row, column) for column in range(start, start + size)]
            slots.append(piece.answer + (size if piece.answer >= start else 0))
        text, inputs, change = valid.clone(), self.embed(ids), None
        pick, words = at_slots(torch.tensor(slots)[:, None]), None
        if _word_count(pieces):
            pick, words = _at_words(pieces, sizes)
        vectors, offsets, states = prompts.rows(owners)
        if places:
            rows, columns = torch.tensor(places).unbind(1)
            text[rows, columns] = False
            at = (rows.to(self.device), columns.to(self.device))
            inputs = inputs.index_put(at, vectors)
            change = None if offsets is None else adding(offsets, *at)
        return Plan(
            inputs=inputs,
            valid=valid.to(self.device),
            pick=pick,
            past=None if states is None else Past.of(states),
            change=change,
            text=text.to(self.device),
            words=None if words is None else words.to(self.device),
            reading=pieces[0].reading,
        )


def _word_count(pieces: Sequence[Pieces]) -> int:
    """Return how many words the longest of some texts has, one at least; 0 where texts are not read at words."""
    if not pieces or pieces[0].words is None:
        return 0
    return max(1, *(len(piece.words or ()) for piece in pieces))


def _at_words(pieces: Sequence[Pieces], sizes: Sequence[int]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a `Plan.pick` of the first token of each word, and these slots `[b, R]`, or `UNREAD` or `CUT`.

    Args:
        pieces: `[b]` the texts.
        sizes: `[b]` tokens of each prompt, behind `before`.
    """
    slots = torch.full((len(pieces), _word_count(pieces)), UNREAD)
    for row, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        start, own = len(piece.before), piece.words or ()
        slots[row, : len(own)] = torch.tensor([at + size * (at >= start) for at in own], dtype=torch.long)
    return at_slots(slots.clamp(min=0)), slots


class MaskedBackbone(EncoderBackbone):
    """A masked language model that answers with the word at its mask."""

    head_kind = HeadKind.MASKED

    def _probe(self, plan: Plan, pieces: Sequence[Pieces]) -> Tensor:
        return self.run(plan, columns_of(self.model, Query("options", tuple(((own,),) for own in _PROBED)), None))[0]

    def _plain(self, piece: Pieces) -> Tensor:
        logits: Tensor = self.model(input_ids=torch.tensor([piece.before], device=self.device)).logits[:, -1]
        return logits[:, list(_PROBED)].float()


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
    has_words = False

    def __init__(self, model: Any, tokenizer: Any, name: str, fingerprint: Callable[[], str], pooling: Pooling) -> None:
        super().__init__(model, tokenizer, name, fingerprint)
        self.pooling = pooling

    def _columns(self, query: Query, head: ClassHead | None) -> Columns:
        if query.read == "vocabulary":
            raise BackboneError(
                f"{self.name} has no language head and gives words no probability; "
                "use a causal or masked language model"
            )
        if query.read == "options" and head is None:
            raise PromptError(
                f"{self.name} has no language head and the prompt brings no class head; tune it first "
                "(zero-shot needs a causal or masked language model)"
            )
        return feature_columns(None if query.read == "features" else head)

    def renderer(self, task: Task) -> Renderer:
        """Return the task as this backbone's tokenizer writes it; errors as of `Backbone.renderer`."""
        if task.answers.at == "words" and self.pooling is Pooling.LAST:
            raise BackboneError(
                f"{self.name} is a decoder, which has not read what stands behind a word; use an encoder for labels of "
                "words"
            )
        return super().renderer(task)

    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `read_rows` takes it; errors as of `Backbone.ready`."""
        return replace(super().ready(prompt, task), columns=_FEATURES)

    def _answer(self, found: Tensor, prompt: ReadyPrompt, piece: Pieces) -> Tensor:
        head = prompt.head
        assert head is not None  # or `ready` had refused it
        if piece.words is None:
            return class_scores(found, head)
        return word_scores(found[: len(piece.words)], head)

    def run(self, plan: Plan, columns: Columns) -> Tensor:
        """Run one pass; return what is read of the pooled features `[1, b, Y]`, or at each word `[R, b, Y]`."""
        return columns.scores(*columns.logits(self._read(plan)))

    def _read(self, plan: Plan) -> Tensor:
        """Return the features of each text `[b, 1, d]`, or at each word `[b, R, d]`."""
        entered: list[Tensor] = []  # what the layers below the last gave

        def enters(number: int, hidden: Tensor) -> None:
            if number:
                entered.append(plan.pick(hidden))

        is_mixed = plan.reading == "context"
        with passing(change=plan.change, enters=enters if is_mixed else None):
            hidden: Tensor = self._forward(plan).last_hidden_state
        if plan.words is None:
            return self._pooled(hidden, plan)[:, None]
        last = plan.pick(hidden)
        if not is_mixed:
            return last
        if len(entered) != len(self.layers) - 1:
            raise BackboneError(
                f"the layers of {self.name} do not show what they give; load the model without torch.compile, or read "
                "the last layer alone (answers: reading: word)"
            )
        return mean_of_layers([*entered, last])

    def _pooled(self, hidden: Tensor, plan: Plan) -> Tensor:
        """Return the features `[b, d]` of the last layer's hidden states."""
        assert plan.text is not None
        if self.pooling is Pooling.CLS:
            return hidden[:, 0]
        if self.pooling is Pooling.LAST:
            last = plan.valid.to(torch.long).sum(1) - 1
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weights = plan.text.to(hidden.dtype)
        return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

    def _probe(self, plan: Plan, pieces: Sequence[Pieces]) -> Tensor:
        hidden: Tensor = self._forward(plan).last_hidden_state
        return torch.stack([row[: len(piece)].mean(0) for row, piece in zip(hidden, pieces, strict=True)])

    def _plain(self, piece: Pieces) -> Tensor:
        ids = torch.tensor([piece.before], device=self.device)
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.mean(1).float()
