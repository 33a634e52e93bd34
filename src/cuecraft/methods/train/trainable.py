"""What the training loop trains of a prompt: a tensor, as it is or made by an encoder, a class head; initial vectors.

The scale of initial vectors matters more than the method: vectors from N(0, 1) next to word embeddings of standard
deviation 0.02 or 0.1 get gradients tens of times too small. Every strategy here starts at the embeddings' own scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cuecraft.artifact import Prompt
from cuecraft.backbone import ClassHead
from cuecraft.core.errors import MethodError
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import trained_copy
from cuecraft.methods.problem import Problem, Selection
from cuecraft.methods.train.loop import Part, TrainingOptions, train, train_side_by_side
from cuecraft.task.token_text import meant_by

_COMMON = 5000  # Lester et al. sample from the 5,000 most common tokens: byte-level vocabularies start with them
_DEFAULT_LENGTH = 8


class TensorOptions(TrainingOptions):
    """Options of training one tensor of the prompt."""

    learning_rate: float = Field(0.02, gt=0, description="AdamW step, in units of the embeddings' RMS")
    head_learning_rate: float = Field(
        0.01,
        gt=0,
        description="AdamW step of a class head; of a soft verbalizer in units of output embeddings' RMS",
    )
    pull: float = Field(0.0, ge=0, description="weight of the mean squared move from the start, in RMS units")

    @property
    def title(self) -> str:
        """As shown where several trainings are compared."""
        return f"{self.name} {self.learning_rate:g} x {self.epochs}"


class TensorTraining(TensorOptions, ABC):
    """Training of one tensor of the prompt, from given prompts on."""

    @abstractmethod
    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return what is trained of a given prompt; step 0 has exactly its logits."""

    def refine(self, problem: Problem, start: Candidate, selection: Selection) -> None:
        """Train from a given prompt."""
        train(self, problem, self.trainable(problem, start), selection)

    def refine_side_by_side(self, parts: Sequence[tuple[Candidate, Selection]]) -> None:
        """Train from several given prompts side by side, each on its selection's problem."""
        train_side_by_side(self, [Part(own.problem, self.trainable(own.problem, start), own) for start, own in parts])


class TrainedHead:
    """A class head in training; nothing where the candidate has none.

    Args:
        head: its first value.
        learning_rate: AdamW step.
        unit: of the step of its weight; its bias is in nats.
    """

    def __init__(self, head: ClassHead | None, learning_rate: float, unit: float = 1.0) -> None:
        self._head = head and replace(
            head,
            weight=trained_copy(head.weight).requires_grad_(),
            bias=trained_copy(head.bias).requires_grad_(),
        )
        self._learning_rate = learning_rate
        self._unit = unit

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups."""
        if self._head is None:
            return []
        if self._unit == 1:
            return [{"params": [self._head.weight, self._head.bias], "lr": self._learning_rate}]
        weight = {"params": [self._head.weight], "lr": self._learning_rate * self._unit}
        return [weight, {"params": [self._head.bias], "lr": self._learning_rate}]

    def on(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the head, differentiable."""
        return prompt.with_head(self._head)

    def frozen_on(self, prompt: Prompt) -> Prompt:
        """Return the prompt with a copy of the head as it is now."""
        head = self._head and replace(
            self._head, weight=self._head.weight.detach().clone(), bias=self._head.bias.detach().clone()
        )
        return prompt.with_head(head)


class PromptTensor:
    """A tensor of the prompt in training, and its class head where there is one.

    Args:
        start: the tensor's first value.
        first: the candidate at step 0, whose calibration stays and whose class head is trained too.
        scale: the unit of learning rate and pull, such as the RMS of the embeddings.
        options: the method's options.
        build: makes a prompt of the tensor.
        encoder: a network whose output, in units of `scale`, is added to the start and trained in the tensor's place;
            it takes nothing and gives a tensor of the start's shape, zero at step 0. It is not needed afterwards.
        encoder_learning_rate: AdamW step of the encoder's weights.
        head_unit: of the learning rate of the class head's weight.
    """

    def __init__(
        self,
        start: Tensor,
        first: Candidate,
        scale: float,
        options: TensorOptions,
        build: Callable[[Tensor], Prompt],
        encoder: nn.Module | None = None,
        encoder_learning_rate: float = 0.0,
        head_unit: float = 1.0,
    ) -> None:
        self._start = trained_copy(start)
        self._tensor = self._start.clone().requires_grad_()
        self._head = TrainedHead(first.prompt.head, options.head_learning_rate, head_unit)
        self._calibration = first.calibration
        self._scale = scale
        self._options = options
        self._build = build
        self._encoder = encoder
        self._encoder_learning_rate = encoder_learning_rate

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups."""
        if self._encoder is None:
            own = {"params": [self._tensor], "lr": self._options.learning_rate * self._scale}
        else:
            own = {"params": list(self._encoder.parameters()), "lr": self._encoder_learning_rate}
        return [own, *self._head.groups()]

    def candidate(self) -> Candidate:
        """Return the candidate as a differentiable function of the trained tensors."""
        return Candidate(self._head.on(self._build(self._value())), self._calibration)

    def snapshot(self) -> Candidate:
        """Return the candidate as it is now, independent of further training."""
        with torch.no_grad():
            value = self._value().detach().clone()
        return Candidate(self._head.frozen_on(self._build(value)), self._calibration)

    def penalty(self) -> Tensor:
        """Return the pull toward the start."""
        if not self._options.pull:
            return torch.zeros((), device=self._start.device)
        return self._options.pull * ((self._value() - self._start) / self._scale).square().mean()

    def _value(self) -> Tensor:
        if self._encoder is None:
            return self._tensor
        encoded: Tensor = self._encoder()
        return self._start + self._scale * encoded.view(self._start.shape)


def embedding_scale(embeddings: Tensor) -> float:
    """Return the root mean square of the embeddings `[V, d]`."""
    return float(embeddings.detach().float().square().mean().sqrt())


class Init(StrEnum):
    """Where a soft prompt's vectors start (Lester et al., EMNLP 2021, section 3.2)."""

    TEXT = "text"  # the template's own prompt words, or `init_text`
    VOCABULARY = "vocabulary"  # sampled common words
    LABELS = "labels"  # label words, in turn
    RANDOM = "random"  # normal, at the embeddings' mean and scale


def initial_vectors(problem: Problem, init: Init, length: int | None, text: str | None) -> Tensor:
    """Return `[S, d]` initial vectors.

    Args:
        problem: the problem.
        init: the strategy.
        length: S; by default that of the template's own words, of `text`, or 8.
        text: words for `Init.TEXT` in place of the template's own.

    Vectors that a text does not fill are sampled from the vocabulary and stand in front of it.

    Raises:
        MethodError: `Init.TEXT` with neither words in the template nor `text`, or a `text` of printed tokens.
    """
    backbone = problem.backbone
    words: tuple[int, ...] = ()
    if init is Init.TEXT:
        words = _words(problem, text)
        if not words:
            raise MethodError(
                "init=text needs words to start from; write {prompt:some words} in the template or give init_text"
            )
    length = length or len(words) or len(problem.initial_ids) or _DEFAULT_LENGTH
    if init is Init.RANDOM:
        return _random(backbone.embedding_matrix(), length, problem.seed)
    if init is Init.LABELS:
        ids = [word[0] for words_of in problem.train.context.renderer.label_ids for word in words_of]
        if not ids:
            raise MethodError("init=labels needs label words, but this backbone answers through a class head")
        return backbone.embed(torch.tensor([ids[n % len(ids)] for n in range(length)])).clone()
    return backbone.embed(torch.tensor(_filled(problem, words, length), dtype=torch.long)).clone()


def text_ids(problem: Problem, length: int, text: str | None) -> list[int]:
    """Return `length` ids to start from: of `text` or the template's own words, behind sampled common words."""
    return _filled(problem, _words(problem, text), length)


def _words(problem: Problem, text: str | None) -> tuple[int, ...]:
    if not text:
        return problem.initial_ids
    tokenizer = problem.backbone.tokenizer
    meant = meant_by(tokenizer, text)
    if meant is not None:
        raise MethodError(f"init_text {text!r} is tokens as a tokenizer's list prints them; write {meant!r}")
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _filled(problem: Problem, words: tuple[int, ...], length: int) -> list[int]:
    """Return the last `length` words, or all of them behind sampled ones."""
    return [*_sampled(problem, max(0, length - len(words))), *words[max(0, len(words) - length) :]]


def _sampled(problem: Problem, count: int) -> list[int]:
    special = set(problem.backbone.tokenizer.all_special_ids)
    common = [n for n in range(min(_COMMON, problem.backbone.vocab_size)) if n not in special]
    order = torch.randperm(len(common), generator=torch_generator(problem.seed, "init"))
    return [common[n] for n in order[:count].tolist()]


def _random(embeddings: Tensor, length: int, seed: int) -> Tensor:
    noise = torch.randn(length, embeddings.shape[1], generator=torch_generator(seed, "init"))
    return embeddings.mean(0) + noise.to(embeddings) * embeddings.std(0)
