"""What a backbone is asked with: prompts, queries, and texts that it has read as far as that goes without a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from torch import Tensor

from cuecraft.backbone.prompt import ClassHead
from cuecraft.backbone.tree import CueTree, grow_tree
from cuecraft.task import Example
from cuecraft.task.fitting import LabelIds
from cuecraft.task.rendering import Pieces, Renderer

if TYPE_CHECKING:
    from cuecraft.backbone.columns import Columns

T = TypeVar("T")
Swap = tuple[int, int]  # a position of the prompt, and the token id put there


@dataclass(frozen=True, eq=False)
class Targets:
    """Tokens of each text that are looked at in the whole vocabulary.

    Args:
        tokens: `[B, M]` ids; texts that have fewer repeat their first.
        others: `[V]` bool, tokens of which the likeliest one that is no target is looked at too; None for none.
    """

    tokens: Tensor
    others: Tensor | None = None


@dataclass(frozen=True)
class Query:
    """What is read of a text.

    Args:
        read: `options` for the scores of options, by the prompt's class head where it has one; `features` for what a
            class head reads; `vocabulary` for the log-probabilities (nats) of all words at the answer slot; `targets`
            for those of some tokens, which are others in each text.
        options: option -> word -> token ids; `()` where only a class head answers.
        norm: `row` for scores of options up to a constant of the row; `siblings` for the same with each further token
            of a word normalised over the tokens with which words go on there, and not over the vocabulary; `vocabulary`
            for the log-probabilities of options of one word each; `token` for the mean log-probability (nats) of a
            word's tokens.
        own: `[B]` options of each text, where texts bring their own; None for `options`.
        level: `mean` for scores of label words less their mean over the options, `any` for any constant of the row.
        targets: the tokens of each text.
    """

    read: Literal["options", "features", "vocabulary", "targets"]
    options: LabelIds = ()
    norm: Literal["row", "siblings", "vocabulary", "token"] = "row"
    own: tuple[LabelIds, ...] | None = None
    level: Literal["any", "mean"] = "any"
    targets: Targets | None = None

    @classmethod
    def for_task(cls, renderer: Renderer) -> Self:
        """Return the query for scores of the options that all texts of a task share."""
        answers = renderer.task.answers
        return cls("options", renderer.label_ids, renderer.task.norm or answers.norm, level=answers.level)

    def of(self, rows: Sequence[int]) -> Query:
        """Return the query to some of the texts."""
        return self if self.own is None else replace(self, own=tuple(self.own[row] for row in rows))


FEATURES, VOCABULARY = Query("features"), Query("vocabulary")


@dataclass(frozen=True, eq=False)
class PlacedPrompt:
    """A prompt on the model's device, checked.

    Args:
        vectors: `[S, d]` its input embeddings.
        offsets: `[n_layers, S, d]` added to the hidden states entering each layer there; None for nothing.
        states: `[n_layers, 2, n_kv_heads, P, head_dim]` keys and values in front of the vectors; None for nothing.
        head: the class head that answers, in place of label words.
    """

    vectors: Tensor
    offsets: Tensor | None
    states: Tensor | None
    head: ClassHead | None = None

    @property
    def length(self) -> int:
        """Positions that it takes in addition to a text's pieces."""
        return len(self.vectors) + (0 if self.states is None else self.states.shape[3])


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadyPrompt(PlacedPrompt):
    """A prompt made ready for passes that it shares with prompts of other tasks (`Backbone.read_rows`).

    Args:
        renderer: its task as the backbone's tokenizer writes it.
        columns: what is read at the answer slot.
        opening: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of all that stands before the text, the prompt
            included, where that is the same for every text; vectors, offsets and states are used up in it. None
            elsewhere.
        shared: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of the ids with which every text begins
            (`Renderer.shared_ids`), where the prompt stands behind the text. None for nothing.
        own: `[1]` ids of the options of the one text that it is for (`Backbone.ready_for`); None for its task's.
        reference: the text without content that options of the one text are compared behind; None for none.
    """

    renderer: Renderer
    columns: Columns
    opening: Tensor | None = None
    shared: Tensor | None = None
    own: tuple[LabelIds] | None = None
    reference: Pieces | None = None

    @cached_property
    def branches(self) -> CueTree | None:
        """What grows after the answer slot: the beginnings of its label words of several tokens; None for nothing."""
        return grow_tree(self.columns.beginnings) if self.columns.beginnings else None

    @property
    def length(self) -> int:
        """Positions that it takes in addition to a text's pieces."""
        if self.opening is not None:
            return self.opening.shape[3] - len(self.renderer.opening_ids or ())
        return super().length

    @property
    def num_options(self) -> int:
        """Options that it answers with, O."""
        return self.renderer.task.answers.size if self.own is None else len(self.own[0])


Row = tuple[ReadyPrompt, Pieces]  # a prompt, and one text as the prompt's renderer writes it


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts to be read.

    Args:
        pieces: `[B]` token ids of each text.
        states: `[B]` what was computed and kept for each text: for a causal backbone the keys and values
            `[n_layers, 2, n_kv_heads, len(before), head_dim]` of the ids before the prompt. None where nothing is
            kept (other backbones; beyond the byte budget), to be computed again by each pass.
        opening: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of the ids with which every text begins
            (`Renderer.shared_ids`), read once for all. None where nothing is kept of them.
    """

    pieces: Sequence[Pieces]
    states: Sequence[Tensor | None]
    opening: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def select(self, rows: Sequence[int]) -> Self:
        """Return some of the texts; nothing is computed or copied."""
        return replace(
            self, pieces=tuple(self.pieces[row] for row in rows), states=tuple(self.states[row] for row in rows)
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Context(Rows):
    """What a backbone knows of some examples without knowing the prompt.

    Args:
        renderer: the task as this backbone's tokenizer writes it.
        examples: `[B]` the texts.
        padding: the share of padding in the batches that read the examples, 0 to 1.
        own: `[B]` ids of the options that each text brings; None where all share those of the task.
        reference: the texts without content (`AnswerSpace.reference`), whose scores of the same options are taken off;
            None for none.
    """

    renderer: Renderer
    examples: tuple[Example, ...]
    padding: float = 0.0
    own: tuple[LabelIds, ...] | None = None
    reference: Self | None = None

    @property
    def query(self) -> Query:
        """The query for scores of options."""
        if self.own is None:
            return Query.for_task(self.renderer)
        return Query("options", norm=self.renderer.task.answers.norm, own=self.own)

    @property
    def whole(self) -> Self:
        """The texts, and behind them those without content, as ordinary texts."""
        texts = replace(self, reference=None)
        return texts if self.reference is None else texts.joined(self.reference)

    def compared(self, values: Tensor) -> Tensor:
        """Return scores `[T, B, O]` of its texts, given those of `whole`: less what texts without content have."""
        if self.reference is None:
            return values
        empty = values[:, len(self) :]
        # Behind a text's own options both are minus infinity.
        return values[:, : len(self)] - empty.masked_fill(empty.isneginf(), 0.0)

    def select(self, rows: Sequence[int]) -> Self:
        """Return the context of some of the examples; nothing is computed or copied."""
        return replace(
            super().select(rows),
            examples=tuple(self.examples[row] for row in rows),
            own=None if self.own is None else tuple(self.own[row] for row in rows),
            reference=None if self.reference is None else self.reference.select(rows),
        )

    def joined(self, other: Self) -> Self:
        """Return the context of these examples and then of others of the same task."""
        reference = self.reference
        if reference is not None and other.reference is not None:
            reference = reference.joined(other.reference)
        return replace(
            self,
            examples=(*self.examples, *other.examples),
            pieces=(*self.pieces, *other.pieces),
            states=(*self.states, *other.states),
            own=None if self.own is None or other.own is None else (*self.own, *other.own),
            reference=reference,
        )

    def unread(self) -> Self:
        """Return the context without what was kept, as a backbone of other weights needs it."""
        reference = None if self.reference is None else self.reference.unread()
        return replace(self, states=(None,) * len(self), opening=None, reference=reference)
