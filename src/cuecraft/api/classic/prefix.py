"""Prefix-tuning as a module around any model (Li & Liang, ACL 2021, arXiv 2101.00190), and its few-shot training.

Language models are trained by the library's own loop, classification heads by a plain one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cuecraft.artifact import Calibration, HardPrompt, PrefixPrompt
from cuecraft.backbone import load_backbone
from cuecraft.backbone.hosted import within_vocabulary
from cuecraft.core.errors import BackboneError, DataError
from cuecraft.core.options import make_options
from cuecraft.core.seeding import torch_generator
from cuecraft.data.labels import class_names, label_name, words_by_name
from cuecraft.data.texts import as_records
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.prepare import DEFAULT_CUE, make_problem, make_task
from cuecraft.methods.problem import Labelled, Selection
from cuecraft.methods.train.loop import TrainingOptions, train
from cuecraft.methods.train.prefix import PrefixTuning as PrefixMethod
from cuecraft.methods.train.soft import EncoderKind
from cuecraft.task.rendering import HeadKind, Pieces

if TYPE_CHECKING:
    pass


from typing import Self

from torch import nn

from cuecraft.api.classic.host import PrefixHost
from cuecraft.backbone.hooks import training
from cuecraft.core.errors import PromptError
from cuecraft.methods.gradients import trained_copy
from cuecraft.methods.train.prefix import moved_states
from cuecraft.methods.train.soft import PromptEncoder
from cuecraft.task.answers.labels import LabelOptions

#: Rows ``{"text": ..., "label": ...}``, or the same as columns, as a slice of a Hugging Face data set is.
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
_SEED = 0  # of the hold-out and of the order of rows
_WIDTH = 256  # of the projection
STATES = "states"


def texts_and_labels(rows: Rows) -> tuple[list[Any], list[Any]]:
    """Return the texts and the labels of rows.

    Raises:
        DataError: no rows, or a row without text or label.
    """
    if isinstance(rows, Mapping):
        columns = [rows.get("text"), rows.get("label")]
        if any(column is None for column in columns):
            raise DataError(f"the data has columns {', '.join(map(repr, rows))}; it needs 'text' and 'label'")
        texts, labels = (list(column) for column in columns if column is not None)
        if len(texts) != len(labels):
            raise DataError(f"{len(texts)} texts but {len(labels)} labels; give one label for each text")
    else:
        rows = list(rows)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping) or not {"text", "label"} <= set(row):
                raise DataError(f"row {number} is not a mapping with 'text' and 'label'")
        texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    if not texts:
        raise DataError("no rows were given; give a few of each class")
    return texts, labels


def train_language_model(
    module: PrefixTuning,
    dataset: Rows,
    tokenizer: Any,
    label_words: Mapping[Any, str | Sequence[str]] | None,
    epochs: int,
    batch_size: int,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the prefix of least loss on held-out rows, and the trace.

    Args:
        module: whose prefix training begins with; it is not changed.
        dataset: see `PrefixTuning.train_fewshot`, as for the rest.
        tokenizer: or None.
        label_words: or None.
        epochs: at most.
        batch_size: of a step.
    """
    texts, labels = texts_and_labels(dataset)
    records, classes = as_records(texts, labels), class_names(labels)
    backbone = load_backbone((module.model, tokenizer or _tokenizer(module.model)))
    ending = "." if backbone.head_kind is HeadKind.MASKED else ""
    template = f"{{prompt}}{{text}}{DEFAULT_CUE}{{mask}}{ending}"
    words = words_by_name(label_words)
    options = {"encoder": EncoderKind.MLP if module.prefix_projection else None, "epochs": epochs}
    method = make_options(
        PrefixMethod, options | {"prefix_length": module.num_virtual_tokens, "batch_size": batch_size}
    )
    task = make_task(
        backbone, records, template, words, None, LabelOptions(classes=tuple(classes)), method.longest_prompt()
    )
    problem = make_problem(backbone, task, records, seed=_SEED)
    if backbone.head_kind is HeadKind.CAUSAL:
        dev = problem.dev and _prefix_first(problem.dev)
        problem = replace(problem, train=_prefix_first(problem.train), dev=dev)
    # Uncalibrated, so that the loss is that of the model's own logits.
    prompt = PrefixPrompt(HardPrompt(()), module.prefix_states.detach())
    start = Candidate(prompt, Calibration.none(len(classes)))
    selection = Selection(problem)
    train(method, problem, method.trainable(problem, start), selection)
    outcome = selection.outcome(start)
    assert outcome.best.prompt.states is not None
    return outcome.best.prompt.states, outcome.trace


def _prefix_first(data: Labelled) -> Labelled:
    """Put what a tokenizer writes before every text behind the prefix, where a module's own pass has it."""
    context = data.context
    pieces = tuple(Pieces((), piece.before + piece.after) for piece in context.pieces)
    return Labelled(replace(context.unread(), pieces=pieces), data.golds)


def train_class_head(
    module: PrefixTuning, dataset: Rows, tokenizer: Any, epochs: int, batch_size: int
) -> list[dict[str, Any]]:
    """Train by a plain loop over ``module(**batch)``; return one event for each epoch.

    Args:
        module: whose prefix is trained.
        dataset: see `PrefixTuning.train_fewshot`, as for the rest.
        tokenizer: or None.
        epochs: passes over the rows.
        batch_size: of a step.

    Raises:
        BackboneError: the model has no head.
        DataError: more classes than the head has, or a class that it does not know.
    """
    model = module.model
    make_options(TrainingOptions, {"epochs": epochs, "batch_size": batch_size})  # refuses what cannot be
    if "labels" not in inspect.signature(model.forward).parameters:
        raise BackboneError(f"{type(model).__name__} has no head to train for; load it with a language or class head")
    texts, labels = texts_and_labels(dataset)
    tokenizer = within_vocabulary(tokenizer or _tokenizer(model), model, type(model).__name__)
    truth = torch.tensor(_class_numbers(model.config, labels), device=model.device)
    texts = [record.fields["text"] for record in as_records(texts)]
    rate = 1e-3 if module.prefix_projection else 0.02 * float(module.start.square().mean().sqrt())
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    generator = torch_generator(_SEED, "order")
    trace = []
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(texts), generator=generator).split(batch_size):
            batch = _encoded(module, tokenizer, [texts[row] for row in rows.tolist()])
            loss = module(**batch, labels=truth[rows.to(truth.device)]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses += [float(loss.detach())] * len(rows)
        trace.append(
            {"phase": "prefix-tuning", "step": epoch, "total": epochs, "train_loss": sum(losses) / len(losses)}
        )
    return trace


def _encoded(module: PrefixTuning, tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    capacity = module.capacity
    batch = tokenizer(texts, padding=True, truncation=capacity is not None, max_length=capacity, return_tensors="pt")
    return {name: tensor.to(module.model.device) for name, tensor in batch.items()}


def _class_numbers(config: Any, labels: Sequence[Any]) -> list[int]:
    """Return the head's number of each label: the label itself, by the head's own names, or in sorted order."""
    names = class_names(labels)
    if all(isinstance(label, int) for label in names.values()):
        known = {name: int(label) for name, label in names.items()}
    else:
        named = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        known = named if set(names) <= set(named) else {name: number for number, name in enumerate(names)}
    wrong = [name for name in names if not 0 <= known[name] < config.num_labels]
    if wrong:
        raise DataError(f"label {wrong[0]!r} has no place in the model's head, which has {config.num_labels} classes")
    return [known[label_name(f"row {row}", label)] for row, label in enumerate(labels, start=1)]


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = getattr(model, "name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"no tokenizer was saved with the model ({name or 'made in memory'}); give tokenizer="
        ) from error


class PrefixTuning(nn.Module):
    """A frozen model with trained keys and values of P virtual tokens in front of every layer's own.

    ``outputs = PrefixTuning(model)(**batch); outputs.loss.backward()`` leaves gradients at the prefix alone: the
    model's weights have none and are never changed, and the model stays in evaluation mode. The batch is what the model
    itself takes, without the prefix in it: masks, labels and pooling are those of the text.

    In a causal model the tokens' positions are shifted by P, padding not counted; logits are those of PEFT's
    PREFIX_TUNING with the same states wherever PEFT is given position ids or right-padded rows. An encoder keeps its
    positions. In a layer with a sliding window the prefix is seen by all tokens.

    Works with causal and masked language models and classification heads whose attention goes through transformers'
    attention interface. A classification head is part of the model and not trained.

    Args:
        model: a transformers model; frozen from now on.
        num_virtual_tokens: P, until `prefix_tokens` or `load_prefix_state_dict` sets another length.
        prefix_projection: train a network that makes the prefix (section 4.3 of the paper) in place of the prefix
            itself. Its last layer starts at zero, so both begin with the same prefix: keys and values of tokens drawn
            from the vocabulary.
        seed: of the drawn tokens and of the network's weights.

    Raises:
        BackboneError: the model's attention takes no keys and values from outside (DeBERTa-v2, ALBERT, T5, ...).
        PromptError: P is not positive.
    """

    start: Tensor
    prefix: nn.Parameter

    @training()
    def __init__(
        self, model: Any, num_virtual_tokens: int = 20, prefix_projection: bool = True, *, seed: int = 0
    ) -> None:
        super().__init__()
        if num_virtual_tokens < 1:
            raise PromptError(f"num_virtual_tokens is {num_virtual_tokens}; a prefix has one at least")
        self.model = model
        self.prefix_projection = prefix_projection
        self._seed = seed
        self._host = PrefixHost(model)
        self._tokens: tuple[int, ...] | None = None
        drawn = self._host.ordinary_ids(num_virtual_tokens, torch_generator(seed, "prefix"))
        self._begin_at(self._host.read(drawn))

    @property
    def num_virtual_tokens(self) -> int:
        """P, the tokens that the prefix stands for."""
        return self.start.shape[3]

    @property
    def capacity(self) -> int | None:
        """Tokens that a text may have next to the prefix; None where the model sets no limit."""
        return self._host.capacity(self.num_virtual_tokens)

    @property
    def prefix_states(self) -> Tensor:
        """Keys and values `[n_layers, 2, n_kv_heads, P, head_dim]`, differentiable."""
        if not self.prefix_projection:
            return self.prefix
        return moved_states(self.start, self.projection())

    @property
    def prefix_tokens(self) -> tuple[int, ...] | None:
        """Token ids that the prefix was started from; None for other states.

        Assigning ids (a list, or a tensor `[P]`) starts the prefix again, from the keys and values that the model has
        for these tokens when it reads them alone. A causal model then answers as if it had read them in front of the
        text. Do so before making an optimizer: another number of tokens makes new parameters.
        """
        return self._tokens

    @prefix_tokens.setter
    def prefix_tokens(self, token_ids: Sequence[int] | Tensor) -> None:
        shape = tuple(token_ids.shape) if isinstance(token_ids, Tensor) else (len(token_ids),)
        if len(shape) != 1 or not shape[0]:
            raise PromptError(
                f"prefix_tokens has shape {list(shape)}; give a list of ids, or a tensor of one dimension"
            )
        ids = tuple(int(token) for token in token_ids)
        outside = [token for token in ids if not 0 <= token < self._host.vocab_size]
        if outside:
            raise PromptError(f"prefix_tokens: {outside[0]} is outside the vocabulary, 0..{self._host.vocab_size - 1}")
        self._begin_at(self._host.read(ids))
        self._tokens = ids

    def forward(self, **batch: Any) -> Any:
        """Return the model's own output for a batch; gradients reach the prefix alone.

        Raises:
            PromptError: prefix and text have more positions than the model.
            BackboneError: the batch brings `past_key_values`.
        """
        self.model.eval()  # dropout, and checkpointing of transformers' own kind, would break the pass
        return self._host.run(self.prefix_states, batch)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Return what a causal language model writes after `input_ids` `[b, L]`, as its own `generate` does.

        The prefix is the cache that generation begins with. `max_length` counts P tokens more, and penalties of
        repetition count the tokens that stand for the prefix.

        Raises:
            BackboneError: the model cannot generate.
        """
        if not (self._host.is_causal and self.model.can_generate()):
            raise BackboneError(f"{type(self.model).__name__} does not generate text; use a causal language model")
        self.model.eval()
        stands_for = self._tokens or [self._host.ordinary_ids(1)[0]] * self.num_virtual_tokens
        front = torch.tensor(stands_for, device=input_ids.device).expand(len(input_ids), -1)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        config = options.get("generation_config") or self.model.generation_config
        names = ("num_beams", "num_return_sequences")
        copies = max(options.get(name) or getattr(config, name, None) or 1 for name in names)
        found = self.model.generate(
            torch.cat([front, input_ids], dim=1),
            attention_mask=torch.cat([torch.ones_like(front), mask], dim=1),
            past_key_values=self._host.cache(self.prefix_states, len(input_ids) * copies),
            **options,
        )
        if isinstance(found, Tensor):
            return found[:, self.num_virtual_tokens :]
        found.sequences = found.sequences[:, self.num_virtual_tokens :]
        return found

    def prefix_state_dict(self) -> dict[str, Tensor]:
        """Return ``{"states": [n_layers, 2, n_kv_heads, P, head_dim]}``; the projection is not needed any more."""
        return {STATES: self.prefix_states.detach().clone()}

    @training()
    def load_prefix_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a prefix; a projection starts again at it. Another length makes new parameters.

        Raises:
            PromptError: there are no states, or they are another model's.
        """
        states = state.get(STATES)
        layers, two, heads, _, width = self.start.shape
        fits = states is not None and states.ndim == 5 and states.shape[3] > 0
        if states is None or not fits or (*states.shape[:3], states.shape[4]) != (layers, two, heads, width):
            found = "nothing" if states is None else list(states.shape)
            raise PromptError(f"{STATES!r} has {found}, but this model takes [{layers}, {two}, {heads}, P, {width}]")
        self._begin_at(states)
        self._tokens = None

    def train(self, mode: bool = True) -> Self:
        """Set the prefix's mode; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @training()
    def train_fewshot(
        self,
        dataset: Rows,
        tokenizer: Any = None,
        *,
        label_words: Mapping[Any, str | Sequence[str]] | None = None,
        epochs: int = 30,
        batch_size: int = 16,
    ) -> list[dict[str, Any]]:
        r"""Train the prefix on a few labelled texts.

        With a language model: through this library's own training. The template is
        ``"{text}\nIn one word, this is{mask}"`` with the prefix before everything, as `forward` has it; a quarter of
        the rows is held out, and the prefix of least loss on them is kept, which may be the one that training began
        with. With a model that has a classification head of its own: a plain loop over `forward` on all rows; the last
        prefix is kept.

        Args:
            dataset: rows ``{"text": ..., "label": ...}``, or a slice of a Hugging Face data set.
            tokenizer: the model's; None for the one that was saved with it.
            label_words: class -> word or words; None for the classes' own names. Language models only.
            epochs: passes over the rows, at most.
            batch_size: rows of one step.

        Returns:
            One event for each epoch, with its losses.

        Raises:
            CuecraftError: data, tokenizer or model cannot be used.
        """
        if self.model.get_output_embeddings() is not None:
            states, trace = train_language_model(self, dataset, tokenizer, label_words, epochs, batch_size)
            self.load_prefix_state_dict({STATES: states})
            return trace
        if label_words is not None:
            raise BackboneError(f"{type(self.model).__name__} answers through its own head; leave label_words out")
        return train_class_head(self, dataset, tokenizer, epochs, batch_size)

    @torch.no_grad()
    def _begin_at(self, states: Tensor) -> None:
        """Let the prefix be some states; parameters of the same shape stay the same objects."""
        states = trained_copy(states).to(self.model.device)
        is_new = "start" not in self._buffers or self.start.shape != states.shape
        self.register_buffer("start", states)
        layers, two, heads, length, width = states.shape
        if not self.prefix_projection:
            if is_new:
                self.prefix = nn.Parameter(states.clone())
            else:
                self.prefix.copy_(states)
            return
        if is_new:
            out = layers * two * heads * width
            encoder = PromptEncoder(EncoderKind.MLP, *(length, _WIDTH, out), self._seed)
            self.projection = encoder.to(states.device)
        for parameter in self.projection.last.parameters():
            parameter.zero_()
