"""The contract that everything meets at: a frozen model that reads texts with prompts, one pass at a time."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from typing import Any, Self

import torch
from torch import Tensor

from cuecraft.backbone.budget import Budget, is_out_of_memory, restore_order
from cuecraft.backbone.columns import Columns, class_scores, columns_of
from cuecraft.backbone.hooks import asks_for_its_pass, hosted, layer_list, passing, with_plain_output
from cuecraft.backbone.nearest import Nearest, NearestRenderer
from cuecraft.backbone.plan import Plan, Prompts
from cuecraft.backbone.prompt import Prompt
from cuecraft.backbone.query import FEATURES, Context, PlacedPrompt, Query, ReadyPrompt, Row, Rows, Swap, T
from cuecraft.backbone.words import OpenVocabulary, right_answers
from cuecraft.core.errors import BackboneError, PromptError
from cuecraft.task import AnswerSpace, Example, Task
from cuecraft.task.rendering import HeadKind, Renderer
from cuecraft.task.token_text import reading_texts
from cuecraft.task.word_rendering import WordRenderer

_TASKS_KEPT = 4  # whose examples' features are kept


class Backbone(ABC):
    """A frozen model and its tokenizer, of one kind of head.

    All that is asked of it is a `read` of texts with prompts; `class_logits` and its relatives say of what. A kind of
    head implements the abstract methods, `_forward` with placement, mask and positions among them.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        name: what to call it in messages and artifacts.
        fingerprint: computes the hash of weights and tokenizer.
        budget: what one pass may take; None for the default of the model's device. Halved, and kept so, each time
            that memory runs out.
    """

    head_kind: HeadKind
    #: Whether words can be the answer; where not, a class head over features answers.
    has_words = True
    #: Whether several prompts over one text are branches behind it, which is read once for all of them.
    reads_texts_once = False

    def __init__(
        self, model: Any, tokenizer: Any, name: str, fingerprint: Callable[[], str], budget: Budget | None = None
    ) -> None:
        self.model = hosted(with_plain_output(model.eval().requires_grad_(False), name))
        self.tokenizer = tokenizer
        #: A copy that reads texts and nothing else. See `reading_texts`.
        self.text_tokenizer = reading_texts(tokenizer)
        self.name = name
        self.budget = budget or Budget.of_device(self.device)
        self._fingerprint = fingerprint
        self._hash: str | None = None
        #: Whether further models may be asked of the Hub on this one's behalf.
        self.local_files_only = False
        #: The arguments by which `load_backbone` gives it again; None for a model in memory.
        self.source: Mapping[str, Any] | None = None
        self._states_shape: tuple[int, ...] | None = None
        self._nearest: dict[Task, Nearest] = {}
        self._vocabularies: dict[str, OpenVocabulary] = {}  # by what stands before an answer

    def __deepcopy__(self, memo: object) -> Self:
        """Return the backbone itself: it never changes, so copies of what holds it (`sklearn.clone`) share it."""
        return self

    def twin(self, model: Any, name: str) -> Self:
        """Return a backbone over another model of the same kind, such as this one's with weights to be trained.

        Its hash is this one's: it says what the tuned weights stand on.
        """
        twin = copy.copy(self)
        twin.__dict__.pop("layers", None)
        twin.model, twin.name, twin._nearest = hosted(with_plain_output(model, name)), name, {}
        return twin

    @property
    def trains_weights(self) -> bool:
        """Whether a pass now has to carry a gradient to the model's own weights."""
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.model.parameters())

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
    def dtype_name(self) -> str:
        """Number type of the weights, such as ``float32``; ``nf4`` for weights of 4 bits."""
        if getattr(self.model, "is_loaded_in_4bit", False):
            return "nf4"
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def max_positions(self) -> int | None:
        """Tokens that one input may have; None when the model sets no limit."""
        return position_limit(self.model.config)

    @cached_property
    def layers(self) -> tuple[Any, ...]:
        """The model's own layers, first to last.

        Raises:
            BackboneError: the model has no list of its layers.
        """
        return layer_list(self.model, self.name)

    @abstractmethod
    def read_states(self, token_ids: Sequence[int]) -> Tensor:
        """Return keys and values `[n_layers, 2, n_kv_heads, L, head_dim]` of a text that is read alone.

        Raises:
            BackboneError: the model's attention does not show them.
        """

    def states_shape(self, length: int) -> tuple[int, int, int, int, int]:
        """Return the shape `[n_layers, 2, n_kv_heads, P, head_dim]` of a prefix of P tokens.

        Raises:
            BackboneError: the model's attention does not show keys and values.
        """
        if self._states_shape is None:
            self._states_shape = tuple(self.read_states(self._sample_ids(1)).shape)
        layers, two, heads, _, width = self._states_shape
        return layers, two, heads, length, width

    def offsets_shape(self, length: int) -> tuple[int, int, int]:
        """Return the shape `[n_layers, S, d]` of a deep cue's offsets for a prompt of S tokens.

        Raises:
            BackboneError: the model has no list of its layers, or they run a `forward` that was set on them.
        """
        if not all(map(asks_for_its_pass, self.layers)):
            raise BackboneError(
                f"offsets do not reach the layers of {self.name}, whose `forward` was replaced, as by torch.compile of "
                "one layer after another; give the model without that, or use another method"
            )
        return len(self.layers), length, self.model.config.get_text_config().hidden_size

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
            TemplateError, LabelWordError, BackboneError: the task does not fit the backbone.
        """
        parts = (self.tokenizer, task, self.head_kind, self.max_positions, self.text_tokenizer)
        if task.answers.at == "words":
            return WordRenderer(*parts)
        if task.nearest is None:
            return Renderer(*parts)
        others = dict(self._nearest)  # which is replaced and never changed, since other threads read it
        found = others.pop(task, None) or Nearest(self, task)
        # The newest at the end; of others the features of their examples are forgotten.
        self._nearest = dict([*others.items(), (task, found)][-_TASKS_KEPT:])
        return NearestRenderer(*parts, found)

    def vocabulary(self, renderer: Renderer) -> OpenVocabulary:
        """Return the words that it can write in the answer slot of a task."""
        if renderer.answer_prefix not in self._vocabularies:
            self._vocabularies[renderer.answer_prefix] = OpenVocabulary.of(self.model, renderer)
        return self._vocabularies[renderer.answer_prefix]

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of weights and tokenizer."""
        if self._hash is None:
            self._hash = self._fingerprint()
        return self._hash

    def context(self, examples: Sequence[Example], task: Task, keep_bytes: int | None = None) -> Context:
        """Read examples once, as far as that is possible without the prompt, and keep `keep_bytes` of it at most.

        So are texts without content that answers are compared with (`AnswerSpace.reference`).
        """
        renderer = self.renderer(task)
        return self._with_options(self._read_ahead(examples, renderer, keep_bytes), keep_bytes)

    def with_answers(self, context: Context, answers: AnswerSpace) -> Context:
        """Return the context of the same texts with answers of another kind; texts are not read again."""
        renderer = self.renderer(replace(context.renderer.task, answers=answers))
        return self._with_options(replace(context, renderer=renderer, own=None, reference=None), None)

    def _with_options(self, context: Context, keep_bytes: int | None) -> Context:
        """Return a context with what each text brings: its options, and the text without content."""
        renderer, examples = context.renderer, context.examples
        if renderer.shares_options:
            return context
        own, bare = tuple(renderer.options_of(examples)), map(renderer.task.answers.reference, examples)
        empty = [found for found in bare if found is not None]
        reference = replace(self._read_ahead(empty, renderer, keep_bytes), own=own) if empty else None
        return replace(context, own=own, reference=reference)

    @abstractmethod
    def _read_ahead(self, examples: Sequence[Example], renderer: Renderer, keep_bytes: int | None) -> Context:
        """Return what is known of texts without the prompt, but for options that they bring."""

    @abstractmethod
    def read(self, texts: Rows, prompts: Prompts, query: Query, owners: Sequence[int] = ()) -> Tensor:
        """Return what a query reads of every text with every prompt, `[T, B, X]`, differentiable.

        Args:
            texts: `[B]` the texts.
            prompts: `[T]` prompts as one table.
            query: what is read.
            owners: `[B]` the number of each text's own prompt, where it has one (see `shares`); those of one prompt
                stand together. The result is then `[1, B, X]`.
        """

    @abstractmethod
    def shares(self, prompts: Prompts) -> bool:
        """Return whether `read` takes prompts, each over texts of its own, in passes that they share."""

    @abstractmethod
    def ready(self, prompt: Prompt, task: Task) -> ReadyPrompt:
        """Return a prompt as `read_rows` takes it: checked, on the device, and read ahead where nothing varies.

        Raises:
            PromptError: it does not fit the backbone or the task.
            TemplateError, LabelWordError: the task does not fit the backbone.
        """

    @abstractmethod
    def read_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own, of any task; differentiable."""

    def class_logits(self, context: Context, prompt: Prompt) -> Tensor:
        """Return class logits `[B, C]`, differentiable with respect to the prompt's tensors."""
        return self._of_options(context, [prompt])[0]

    def class_logits_many(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return class logits `[T, B, C]` of several prompts over the same examples.

        On a causal model, prompts without a prefix share their passes, those with a class head apart from the others.
        """
        joining = [n for n, own in enumerate(prompts) if self.reads_texts_once and own.states is None]
        worded, headed = ([n for n in joining if (prompts[n].head is not None) is has] for has in (False, True))
        rest = [[n] for n in range(len(prompts)) if n not in joining]
        groups = [group for group in (worded, headed, *rest) if group]
        parts = [self._of_options(context, [prompts[n] for n in group]) for group in groups or [[]]]
        return restore_order(parts, groups, dim=0)

    def _of_options(self, context: Context, prompts: Sequence[Prompt]) -> Tensor:
        """Return the scores `[T, B, O]` of prompts that share their passes: all have a class head, or none."""
        heads = [own.head for own in prompts if own.head is not None]
        if len(heads) > 1:
            features = self.read_prompts(context, prompts, FEATURES)
            return torch.stack([class_scores(own, head) for own, head in zip(features, heads, strict=True)])
        return self._scores(context, lambda texts, query: self.read_prompts(texts, prompts, query))

    def _scores(self, context: Context, read: Callable[[Context, Query], Tensor]) -> Tensor:
        """Return the scores `[T, B, O]` of options; `read` returns what a query reads `[T, b, X]` of some texts."""
        if context.renderer.task.answers.is_open:
            return right_answers(context, self.vocabulary(context.renderer).firsts(self.head_kind), read)
        texts = context.whole
        return context.compared(read(texts, texts.query))

    def features(self, context: Context, prompt: Prompt) -> Tensor:
        """Return what a class head reads `[B, d]`, differentiable with respect to the prompt's tensors.

        Hidden states at the answer slot; of a model without an output embedding, pooled, or at words `[B, R, d]`.
        """
        return self.read_prompts(context, [prompt], FEATURES)[0]

    def share_passes(self, parts: Sequence[tuple[Context, Prompt]]) -> bool:
        """Return whether `class_logits_each` reads these together."""
        return self._table(parts) is not None

    def _table(self, parts: Sequence[tuple[Context, Prompt]]) -> Prompts | None:
        """Return the prompts of parts that share passes; None where these do not."""
        first = parts[0][0].renderer
        if any(context.renderer is not first for context, _ in parts) or first.task.answers.is_open:
            return None
        prompts = Prompts.of([self.placed(prompt) for _, prompt in parts])
        return prompts if self.shares(prompts) else None

    def class_logits_each(self, parts: Sequence[tuple[Context, Prompt]]) -> list[Tensor]:
        """Return class logits `[B, C]` of several prompts, each over examples of its own; differentiable."""
        prompts = self._table(parts)
        if prompts is None:
            return [self.class_logits(context, prompt) for context, prompt in parts]
        for number, (context, _) in enumerate(parts):
            context.renderer.check_length(context.pieces, prompts.length_of(number), context.own)
        joined = reduce(Context.joined, (context for context, _ in parts))
        owners = [number for number, (context, _) in enumerate(parts) for _ in range(len(context))]
        texts = joined.whole
        found = self.read(texts, prompts, texts.query, owners * (len(texts) // len(joined)))
        return list(joined.compared(found)[0].split([len(context) for context, _ in parts]))

    @torch.no_grad()
    def score_swaps(self, context: Context, prompt: Prompt, swaps: Sequence[Swap]) -> Tensor:
        """Return class logits `[K, B, C]` with each swap (position, token id) made alone; no gradient.

        On a causal model all share the context, and all that share a beginning of the prompt share that.
        """
        prompts = Prompts.of([self.placed(prompt)])
        checked = self._checked_swaps(swaps, len(prompts.codes[0]))
        new = self.embed(torch.tensor([token for _, token in checked], dtype=torch.long))
        self._check_fit(context, prompts)
        swapped = prompts.swapped([position for position, _ in checked], new)
        return self._scores(context, lambda texts, query: self.read(texts, swapped, query))

    def ready_for(self, prompt: ReadyPrompt, example: Example) -> ReadyPrompt:
        """Return a prompt as `read_rows` takes it for one text, which may bring options of its own."""
        if prompt.renderer.shares_options:
            return prompt
        answers = prompt.renderer.task.answers
        own = (prompt.renderer.options_of([example])[0],)
        columns = columns_of(self.model, Query("options", norm=answers.norm, own=own), None)
        empty = answers.reference(example)
        reference = None if empty is None else prompt.renderer.fitted([empty])[0][0]
        return replace(prompt, columns=columns, own=own, reference=reference)

    @torch.no_grad()
    def mixed_logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return class logits `[C]` of each row: a text with a prompt of its own, of any task and kind; no gradient."""
        compared = [(number, prompt) for number, (prompt, _) in enumerate(rows) if prompt.reference is not None]
        empty = [(prompt, prompt.reference) for _, prompt in compared if prompt.reference is not None]
        found = self.read_rows([*rows, *empty])
        for (number, _), own in zip(compared, found[len(rows) :], strict=True):
            found[number] = found[number] - own
        return found[: len(rows)]

    def read_prompts(self, context: Context, prompts: Sequence[Prompt], query: Query) -> Tensor:
        """Return what a query reads `[T, B, X]` of examples with prompts that share their passes.

        Raises:
            PromptError: a prompt does not fit the backbone, or makes an input longer than its positions.
        """
        if not len(context) or not prompts:
            raise BackboneError("there is nothing to score; give at least one example and one prompt")
        table = Prompts.of([self.placed(prompt) for prompt in prompts])
        self._check_fit(context, table)
        return self.read(context, table, query)

    def _check_fit(self, context: Context, prompts: Prompts) -> None:
        """Raise PromptError where prompts make an input longer than the model's positions, or cannot answer."""
        context.renderer.check_length(context.pieces, prompts.length, context.own)

    def run(self, plan: Plan, columns: Columns) -> Tensor:
        """Run one pass; return what is read `[K, b, Y]`.

        Raises:
            BackboneError: the model did not call its output embedding.
        """
        kept: list[Any] = []  # one item after the pass: what `columns.logits` keeps for `columns.scores`

        def output(hidden: Tensor) -> Tensor:
            logits, own = columns.logits(plan.pick(hidden))
            kept[:] = [own]
            return logits

        with passing(change=plan.change, output=output):
            found = self._forward(plan)
        if not kept:
            raise BackboneError("this model makes its logits without calling its output embedding; use another")
        return columns.scores(found.logits, kept[0])

    @abstractmethod
    def _forward(self, plan: Plan) -> Any:
        """Call the model: the only place that makes masks and positions."""

    def no_prompt(self) -> Prompts:
        """Return a prompt of no tokens."""
        return Prompts.of([PlacedPrompt(self.embed(torch.zeros(0, dtype=torch.long)), None, None)])

    def placed(self, prompt: Prompt) -> PlacedPrompt:
        """Return a prompt on the model's device.

        Raises:
            PromptError: it does not fit the backbone.
        """
        ids = () if isinstance(prompt.tokens, Tensor) else prompt.tokens
        if not all(0 <= token < self.vocab_size for token in ids):
            raise PromptError(
                f"the prompt has a token outside the {self.vocab_size} of {self.name}: of another backbone"
            )
        vectors = self._fitting(prompt.vectors(self.embed), ("S", self.hidden_size), " is")
        offsets, states = prompt.offsets, prompt.states
        if offsets is not None:
            offsets = self._fitting(offsets, self.offsets_shape(len(vectors)), "'s offsets are")
        if states is not None:
            length = states.shape[3] if states.ndim == 5 else 0
            states = self._fitting(states, self.states_shape(length), "'s keys and values are")
        return PlacedPrompt(vectors, offsets, states, prompt.head)

    def within_memory(self, run: Callable[[Budget], T]) -> T:
        """Run with the budget; where memory runs out, halve the budget for good and run again.

        A caller that takes backward passes runs them in here too, `budget.rows` examples at a time: what a pass with a
        gradient keeps is freed by its backward pass only, so such a pass alone is not run again.
        """
        while True:
            try:
                return run(self.budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self.budget.halved()
                if smaller is None:
                    raise BackboneError(
                        f"memory of {self.device} ran out with one text at a time; give max_tokens or a smaller model"
                    ) from error
            # Outside of the except block, where the error would keep the failed pass's tensors alive.
            self.budget = smaller

    def _score_within_memory(self, run: Callable[[Budget], T]) -> T:
        """Run passes that score; with a gradient they are in the care of who takes the backward pass."""
        return run(self.budget) if torch.is_grad_enabled() else self.within_memory(run)

    def _pass_bytes(self, width: int, nodes: int) -> int:
        """Return about how many bytes a pass takes for one row of `width` kept tokens and `nodes` new ones."""
        config = self.model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        layer = nodes * (6 * config.hidden_size + 3 * inner + 3 * config.num_attention_heads * (width + nodes))
        # One layer at a time; a pass with a gradient keeps all of them.
        held = config.num_hidden_layers if torch.is_grad_enabled() else 1
        return int(layer * held * self.model.dtype.itemsize)

    def training_bytes(self, width: int, nodes: int) -> int:
        """Return about how many bytes a pass keeps for its gradient: one row of `width` kept and `nodes` new tokens."""
        with torch.enable_grad():
            return self._pass_bytes(width, nodes)

    def _sample_ids(self, count: int) -> list[int]:
        """Return ids of the vocabulary, none of them special, to try a new backbone on."""
        special = set(self.tokenizer.all_special_ids)
        return [n for n in range(self.vocab_size) if n not in special][-count:]

    def _fitting(self, part: Tensor, shape: Sequence[int | str], what: str) -> Tensor:
        """Return a prompt's tensor on the model's device, or say that it does not fit; a name stands for any size."""
        pairs = zip(part.shape, shape, strict=False)
        if part.ndim != len(shape) or any(isinstance(size, int) and own != size for own, size in pairs):
            raise PromptError(
                f"the prompt{what} {list(part.shape)}, but {self.name} takes [{', '.join(map(str, shape))}]; it was "
                "made for another backbone"
            )
        return part.to(self.device, self.model.dtype)

    def _checked_swaps(self, swaps: Sequence[Swap], length: int) -> list[Swap]:
        """Return the swaps, or say that one names a position or token that is not there."""
        for position, token in swaps:
            if not 0 <= token < self.vocab_size:
                raise PromptError(f"a candidate token is outside 0..{self.vocab_size - 1} of {self.name}")
            if not 0 <= position < length:
                raise PromptError(f"position {position} is outside a prompt of {length} tokens")
        return list(swaps)


def position_limit(config: Any) -> int | None:
    """Return the tokens that a model's positions are enough for; None where it sets no limit."""
    text = config.get_text_config()
    limit: int | None = getattr(text, "max_position_embeddings", None)
    if limit is not None and text.model_type in _OFFSET_POSITIONS:
        limit -= (text.pad_token_id or 0) + 1
    return limit if limit and limit > 0 else None


# RoBERTa and similar models number positions from pad_token_id + 1.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"}
