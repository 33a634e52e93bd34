"""The contract that everything meets at: a frozen backbone reads contexts and scores prompts over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor

from cuecraft.backbone.budget import Budget
from cuecraft.backbone.tree import CueTree
from cuecraft.task import Example, Task
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

T = TypeVar("T")
Swap = tuple[int, int]  # a position of the prompt, and the token id put there


class FeatureScale(StrEnum):
    """What becomes of features before a class head reads them."""

    PLAIN = "plain"  # as they are
    UNIT = "unit"  # divided by their Euclidean length


@dataclass(frozen=True, eq=False)
class ClassHead:
    """A read-out of features in place of label words: ``scaled(features) @ weight.T + bias``.

    Args:
        weight: `[C, d]`.
        bias: `[C]`.
        scale: what becomes of the features before.
    """

    weight: Tensor
    bias: Tensor
    scale: FeatureScale = FeatureScale.PLAIN


class Prompt(Protocol):
    """What a backbone needs to know of a prompt."""

    @property
    def head(self) -> ClassHead | None:
        """The class head trained with the prompt; None to read label words."""
        ...

    @property
    def offsets(self) -> Tensor | None:
        """What is added to the hidden state entering each layer at the prompt's positions, `[n_layers, S, d]`."""
        ...

    @property
    def states(self) -> Tensor | None:
        """Keys and values that stand before the prompt's vectors, `[n_layers, 2, n_kv_heads, P, head_dim]`."""
        ...

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the prompt's input embeddings `[S, d]`; `embed` looks token ids up."""
        ...


@dataclass(frozen=True, eq=False)
class ReadyPrompt:
    """A prompt made ready for passes that it shares with prompts of other tasks (`Backbone.mixed_logits`).

    Args:
        renderer: its task as the backbone's tokenizer writes it.
        vectors: `[S, d]` its input embeddings.
        offsets: `[n_layers, S, d]` added to the hidden states entering each layer there; None for nothing.
        states: `[n_layers, 2, n_kv_heads, P, head_dim]` keys and values in front of the vectors; None for nothing.
        head: the class head that answers, in place of label words.
        opening: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of all that stands before the text, the prompt
            included, where that is the same for every text; the fields above are used up in it. None elsewhere.
        reads: what is read at the answer slot; None where features are pooled.
        branches: the beginnings of its label words of several tokens, which grow after the answer slot; None for none.
        shared: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of the ids with which every text begins
            (`Renderer.shared_ids`), where the prompt stands behind the text. None for nothing.
    """

    renderer: Renderer
    vectors: Tensor
    offsets: Tensor | None
    states: Tensor | None
    head: ClassHead | None = None
    opening: Tensor | None = None
    reads: Any = None
    branches: CueTree | None = None
    shared: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions that it takes in addition to a text's pieces."""
        if self.opening is not None:
            return self.opening.shape[3] - len(self.renderer.opening_ids or ())
        return len(self.vectors) + (0 if self.states is None else self.states.shape[3])

    @property
    def num_classes(self) -> int:
        """Classes of its task, C."""
        return self.renderer.task.answers.size


Row = tuple[ReadyPrompt, Pieces]  # a prompt, and one text as the prompt's renderer writes it


@dataclass(frozen=True, eq=False)
class Context:
    """What a backbone knows of some examples without knowing the prompt.

    Args:
        renderer: the task as this backbone's tokenizer writes it.
        examples: `[B]` the texts.
        pieces: `[B]` token ids of each example.
        states: `[B]` what was computed and kept for each example: for a causal backbone the keys and values
            `[n_layers, 2, n_kv_heads, len(before), head_dim]` of the ids before the prompt. None where nothing is
            kept (other backbones; beyond the byte budget), to be computed again by each pass.
        padding: the share of padding in the batches that read the examples, 0 to 1.
        opening: `[n_layers, 2, n_kv_heads, L, head_dim]` keys and values of the ids with which every text begins
            (`Renderer.shared_ids`), read once for all. None where nothing is kept of them.
    """

    renderer: Renderer
    examples: tuple[Example, ...]
    pieces: tuple[Pieces, ...]
    states: tuple[Tensor | None, ...]
    padding: float = 0.0
    opening: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def select(self, rows: Sequence[int]) -> Self:
        """Return the context of some of the examples; nothing is computed or copied."""
        return replace(
            self,
            examples=tuple(self.examples[row] for row in rows),
            pieces=tuple(self.pieces[row] for row in rows),
            states=tuple(self.states[row] for row in rows),
        )

    def joined(self, other: Self) -> Self:
        """Return the context of these examples and then of others of the same task."""
        return replace(
            self,
            examples=(*self.examples, *other.examples),
            pieces=(*self.pieces, *other.pieces),
            states=(*self.states, *other.states),
        )

    def unread(self) -> Self:
        """Return the context without what was kept, as a backbone of other weights needs it."""
        return replace(self, states=(None,) * len(self), opening=None)


class Backbone(Protocol):
    """A frozen model and its tokenizer, of one kind of head.

    Placement, attention mask, position ids and pooling live in one function of each implementation.
    """

    name: str
    head_kind: HeadKind
    tokenizer: Any
    model: Any

    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Read examples once, as far as that is possible without the prompt, and keep `keep_bytes` of it at most."""
        ...

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        ...

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples."""
        ...

    def share_passes(self, parts: Sequence[tuple[Context, Prompt]]) -> bool:
        """Return whether `class_logits_each` reads these together."""
        ...

    def class_logits_each(self, parts: Sequence[tuple[Context, Prompt]]) -> list[Tensor]:
        """Return class logits `[B, C]` of several prompts, each over examples of its own; differentiable."""
        ...

    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `mixed_logits` takes it."""
        ...

    def mixed_logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own, of any task and kind; no gradient."""
        ...

    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return what a class head reads `[B, d]`, differentiable with respect to the prompt's tensors."""
        ...

    def score_swaps(self, context: Context, prompt: Prompt, swaps: Sequence[Swap]) -> Tensor:
        """Return class logits `[K, B, C]` with each swap (position, token id) made alone; no gradient."""
        ...

    def score_candidates(self, context: Context, prompt: Prompt, position: int, token_ids: Sequence[int]) -> Tensor:
        """Return class logits `[K, B, C]` with each candidate token in turn at one position; no gradient."""
        ...

    def within_memory(self, run: Callable[[Budget], T]) -> T:
        """Run with a budget that is halved, and the run made again, where memory runs out."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return input embeddings `[..., d]` of token ids `[...]`."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of weights and tokenizer."""
        ...
