"""Prefix-tuning: trained keys and values of every layer (Li & Liang, ACL 2021, arXiv 2101.00190).

And P-tuning v2, which is the same without a prompt encoder, for understanding tasks on encoders and decoders alike
(Liu et al., ACL 2022, arXiv 2110.07602).

A prefix stands in the prompt slot: before the text where the template begins with the slot, else between the text and
the slot's own words, which stay. Before the text each step reads all texts again, as no context can be kept.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cuecraft.artifact import HardPrompt, PrefixPrompt, Prompt
from cuecraft.core.errors import MethodError
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.methods.train.loop import train
from cuecraft.methods.train.soft import EncoderKind, PromptEncoder, require_read
from cuecraft.methods.train.trainable import PromptTensor, TensorOptions, text_ids
from cuecraft.methods.train.verbalizer import Verbalized, VerbalizerKind, head_unit, verbalized
from cuecraft.methods.untuned import begin, fit_head
from cuecraft.task import Task


class PrefixInit(StrEnum):
    """Where a prefix starts."""

    TEXT = "text"  # keys and values of real words, read where the prefix stands (Li & Liang, section 4.3, figure 5)
    RANDOM = "random"  # normal, at the mean and scale of such keys and values in each layer


class PrefixTuning(TensorOptions, Method):
    """Prefix-tuning as a method."""

    name: ClassVar[str] = "prefix-tuning"
    weighs_examples: ClassVar[bool] = True

    learning_rate: float = Field(0.02, gt=0, description="AdamW step, in units of the first states' RMS in each layer")
    prefix_length: int = Field(8, ge=1, description="tokens that the prefix stands for")
    init: PrefixInit = Field(PrefixInit.TEXT, description="`text` or `random`")
    init_text: str | None = Field(None, description="words to start from; by default the template's own")
    encoder: EncoderKind | None = Field(
        EncoderKind.MLP, description="reparameterisation while training: `mlp`, `lstm`, or none to train the states"
    )
    encoder_width: int = Field(256, ge=1, description="of the encoder's position embeddings and hidden layers")
    encoder_learning_rate: float = Field(1e-3, gt=0, description="AdamW step of the encoder's weights")
    calibration: Calibrated = CalibrationKind.FITTED
    verbalizer: Verbalized = VerbalizerKind.WORDS

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        if self.encoder is None:
            unread = ["encoder_width", "encoder_learning_rate"]
            require_read(self, unread, "no encoder is trained, so give learning_rate, or encoder=mlp")
        else:
            require_read(self, ["learning_rate"], "an encoder is trained, so give encoder_learning_rate")
        return self

    @property
    def reads_label_words(self) -> bool:
        """Whether no vectors take the place of label words."""
        return self.verbalizer is VerbalizerKind.WORDS

    def longest_prompt(self) -> int:
        """Return the positions to keep free: the prefix stands before the template's words, which need theirs too."""
        return Task.reserve + self.prefix_length

    def fit(self, problem: Problem) -> Outcome:
        """Train from the initial prefix; the best prompt on dev wins, the untuned one included."""
        untuned, selection = begin(problem, self.calibration)
        states = self.initial_states(problem)
        with problem.in_time():
            for first in self.starting_at(problem, states):
                train(self, problem, self.trainable(problem, first), selection)
        return selection.outcome(untuned)

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return a given prefix, to be trained; step 0 has exactly its logits."""
        prompt = start.prompt
        if prompt.states is None:
            raise MethodError(f"{self.name} trains a prefix, which the prompt to start from has not")
        states = prompt.states.detach().float()
        length = states.shape[3]
        rows = torch.zeros(length, states.numel() // length, device=states.device)
        unit = head_unit(problem.backbone)

        def build(rows: Tensor) -> Prompt:
            return PrefixPrompt(prompt, moved_states(states, rows))

        if self.encoder is None:
            return PromptTensor(rows, start, 1.0, self, build, head_unit=unit)
        encoder = PromptEncoder(self.encoder, length, self.encoder_width, rows.shape[1], problem.seed)
        own, rate = encoder.to(states.device), self.encoder_learning_rate
        return PromptTensor(rows, start, 1.0, self, build, own, rate, unit)

    def starting_at(self, problem: Problem, states: Tensor) -> list[Candidate]:
        """Return the template's own words behind a prefix, calibrated, with a class head where one is needed.

        There are two of them where both starts of a soft verbalizer are tried.
        """
        words = HardPrompt(problem.initial_ids)
        if not problem.backbone.has_words:
            words = HardPrompt(problem.initial_ids, fit_head(problem, PrefixPrompt(words, states)))
        return verbalized(problem, PrefixPrompt(words, states), self.verbalizer, self.calibration)

    def initial_states(self, problem: Problem) -> Tensor:
        """Return the first states `[n_layers, 2, n_kv_heads, P, head_dim]`."""
        backbone, length = problem.backbone, self.prefix_length
        ids = text_ids(problem, length, self.init_text)
        before = _typical(problem)
        states = backbone.read_states([*before, *ids])[:, :, :, len(before) :]
        if self.init is PrefixInit.TEXT:
            return states
        noise = torch.randn(states.shape, generator=torch_generator(problem.seed, "init")).to(states)
        around = (2, 3)  # heads and positions
        return states.mean(around, keepdim=True) + noise * states.std(around, keepdim=True)


class PTuningV2(PrefixTuning):
    """P-tuning v2: deep prompts of every layer, trained as they are."""

    name: ClassVar[str] = "p-tuning-v2"

    learning_rate: float = Field(0.1, gt=0, description="AdamW step, in units of the first states' RMS in each layer")
    encoder: EncoderKind | None = Field(None, description="`mlp` or `lstm` to make the states while training")


def moved_states(start: Tensor, rows: Tensor) -> Tensor:
    """Return a prefix `[n_layers, 2, n_kv_heads, P, head_dim]` moved by one row of numbers for each position.

    Args:
        start: where it stood, of the same shape.
        rows: `[P, n_layers * 2 * n_kv_heads * head_dim]`, in units of the RMS of each layer's keys or values.
    """
    layers, two, heads, length, width = start.shape
    moved = rows.view(length, layers, two, heads, width).permute(1, 2, 3, 0, 4)
    return start + start.square().mean(dim=(2, 3, 4), keepdim=True).sqrt() * moved


def _typical(problem: Problem) -> tuple[int, ...]:
    """Return ids of what stands before the prompt in a training example of median length."""
    pieces = sorted((piece.before for piece in problem.train.context.pieces), key=lambda ids: (len(ids), ids))
    return pieces[len(pieces) // 2]
