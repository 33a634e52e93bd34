"""The contract that everything meets at: a frozen backbone reads contexts and scores prompts over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from cuecraft.backbone.rendering import HeadKind, Pieces, Renderer
from cuecraft.errors import PromptError
from cuecraft.task import Example, Task


@dataclass(frozen=True, eq=False)
class ClassHead:
    """The read-out of a sequence classification backbone: ``features @ weight.T + bias``.

    Args:
        weight: `[C, d]`.
        bias: `[C]`.
    """

    weight: Tensor
    bias: Tensor


class Prompt(Protocol):
    """What a backbone needs to know of a prompt."""

    @property
    def head(self) -> ClassHead | None:
        """The class head trained with the prompt; sequence classification only."""
        ...

    def vectors(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the prompt's input embeddings `[S, d]`; `embed` looks token ids up."""
        ...


@dataclass(frozen=True, eq=False)
class Context:
    """What a backbone knows of some examples without knowing the prompt.

    Args:
        renderer: the task as this backbone's tokenizer writes it.
        pieces: `[B]` token ids of each example.
        states: `[B]` what was computed and kept for each example: for a causal backbone the keys and values
            `[n_layers, 2, n_kv_heads, len(before), head_dim]` of the ids before the prompt. None where nothing is
            kept (other backbones; beyond the byte budget), to be computed again by each pass.
    """

    renderer: Renderer
    pieces: tuple[Pieces, ...]
    states: tuple[Tensor | None, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    def select(self, rows: Sequence[int]) -> Self:
        """Return the context of some of the examples; nothing is computed or copied."""
        return replace(
            self,
            pieces=tuple(self.pieces[row] for row in rows),
            states=tuple(self.states[row] for row in rows),
        )


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

    def score_candidates(self, context: Context, prompt: Prompt, position: int, token_ids: Sequence[int]) -> Tensor:
        """Return class logits `[K, B, C]` with each candidate token in turn at one position; no gradient."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return input embeddings `[..., d]` of token ids `[...]`."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of weights and tokenizer."""
        ...


class FrozenModel:
    """What the backbones share: the frozen model, its embeddings, and checks of a prompt's shape."""

    head_kind: HeadKind

    def __init__(self, model: Any, tokenizer: Any, name: str, fingerprint: Callable[[], str]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._fingerprint = fingerprint
        self._hash: str | None = None

    def __deepcopy__(self, memo: object) -> Self:
        """Return the backbone itself: it never changes, so copies of what holds it (`sklearn.clone`) share it."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding, V."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings, d."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def max_positions(self) -> int | None:
        """Tokens that one input may have; None when the model sets no limit."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and config.model_type in _OFFSET_POSITIONS:
            limit -= (config.pad_token_id or 0) + 1
        return limit if limit and limit > 0 else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return input embeddings `[..., d]` of token ids `[...]`, scaled as the model scales them."""
        embedded: Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embedded

    def embedding_matrix(self) -> Tensor:
        """Return the input embeddings `[V, d]` of the whole vocabulary, scaled as the model scales them."""
        module = self.model.get_input_embeddings()
        if type(module) is torch.nn.Embedding and module.max_norm is None:
            weight: Tensor = module.weight
            return weight
        return self.embed(torch.arange(self.vocab_size))

    def renderer(self, task: Task) -> Renderer:
        """Return the task as this backbone's tokenizer writes it.

        Raises:
            TemplateError, LabelWordError: the task does not fit the backbone.
        """
        return Renderer(self.tokenizer, task, self.head_kind, self.max_positions)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of weights and tokenizer."""
        if self._hash is None:
            self._hash = self._fingerprint()
        return self._hash

    def _vectors(self, prompt: Prompt) -> Tensor:
        """Return a prompt's vectors `[S, d]` on the model's device, or say that they do not fit."""
        vectors = prompt.vectors(self.embed)
        if vectors.ndim != 2 or vectors.shape[1] != self.hidden_size:
            raise PromptError(
                f"the prompt is {list(vectors.shape)}, but {self.name} takes [S, {self.hidden_size}]; "
                "it was made for another backbone"
            )
        return vectors.to(self.device, self.model.dtype)

    def _token_ids(self, token_ids: Sequence[int]) -> Tensor:
        """Return candidate ids `[K]`, or say that one is outside the vocabulary."""
        ids = torch.as_tensor(list(token_ids), dtype=torch.long)
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise PromptError(f"a candidate token is outside 0..{self.vocab_size - 1} of {self.name}")
        return ids


# RoBERTa and kin number positions from pad_token_id + 1.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"}


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first, so that rows times longest row stays within a budget.

    A row longer than the budget makes a batch of its own. Every row comes exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def restore_order(parts: Sequence[Tensor], batches: Sequence[Sequence[int]], dim: int) -> Tensor:
    """Join per-batch results along `dim` and put the rows back into input order."""
    joined = torch.cat(list(parts), dim=dim)
    order = torch.as_tensor([row for batch in batches for row in batch], device=joined.device)
    return joined.index_select(dim, order.argsort())
