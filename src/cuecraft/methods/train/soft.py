"""Prompt tuning (Lester et al., EMNLP 2021, arXiv 2104.08691), and P-tuning with a prompt encoder.

P-tuning (Liu et al., 2021, arXiv 2103.10385, section 3.2) runs trained embeddings of the prompt's positions through a
bidirectional LSTM and a two-layer perceptron, or a perceptron alone; prefix-tuning (Li & Liang, ACL 2021, section 4.3)
through a perceptron. Here the last layer starts at zero and what comes out is added to where the prompt starts, so
step 0 is the prompt that training starts from. An encoder is dropped after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from cuecraft.artifact import SoftPrompt
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.in_context import BehindShots
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.methods.train.trainable import Init, PromptTensor, TensorTraining, embedding_scale, initial_vectors
from cuecraft.methods.train.verbalizer import Verbalized, VerbalizerKind, head_unit, verbalized
from cuecraft.methods.untuned import begin, fit_head


class EncoderKind(StrEnum):
    """How a prompt's tensor is made while it is trained."""

    MLP = "mlp"
    LSTM = "lstm"


def require_read(options: BaseModel, unread: Sequence[str], instead: str) -> None:
    """Raise ValueError where an option that nothing reads was given another value than its default.

    Args:
        options: the method's options.
        unread: names of options that have no effect here.
        instead: what to do.
    """
    for name in unread:
        if getattr(options, name) != type(options).model_fields[name].default:
            raise ValueError(f"{name} has no effect here; {instead}")


class PromptEncoder(nn.Module):
    """Trained position embeddings, through a network.

    Args:
        kind: of the network.
        length: positions, S.
        width: of position embeddings and hidden layers.
        out: numbers of each position.
        seed: of the initial weights.
    """

    def __init__(self, kind: EncoderKind, length: int, width: int, out: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():  # modules draw from the global generator what is drawn again below
            self.positions = nn.Parameter(torch.empty(length, width))
            self.lstm: Any = None
            entering = width
            if kind is EncoderKind.LSTM:
                self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
                entering = 2 * width
            hidden = [nn.Linear(entering, width), nn.Tanh()] if kind is EncoderKind.LSTM else self._perceptron(width)
            self.last = nn.Linear(width, out)
            self.hidden = nn.Sequential(*hidden)
        self._initialise(seed)

    @staticmethod
    def _perceptron(width: int) -> list[nn.Module]:
        return [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw the weights from the run's own generator, none of them from torch's global one."""
        generator = torch_generator(seed, "prompt-encoder")
        for parameter in self.parameters():
            if parameter.ndim > 1:
                bound = parameter.shape[-1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
        self.positions.normal_(generator=generator)
        self.last.weight.zero_()

    def forward(self) -> Tensor:
        """Return `[S, out]`, zero before the first step."""
        states = self.positions
        if self.lstm is not None:
            states = self.lstm(states[None])[0][0]
        found: Tensor = self.last(self.hidden(states))
        return found


class EmbeddingTraining(TensorTraining):
    """Training of the prompt's input embeddings, from a given prompt on."""

    name: ClassVar[str] = "prompt-tuning"
    weighs_examples: ClassVar[bool] = True

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return the embeddings of a given prompt, hard or soft, to be trained; step 0 has exactly its logits."""
        backbone = problem.backbone
        scale = embedding_scale(backbone.embedding_matrix())
        vectors, unit = start.prompt.vectors(backbone.embed), head_unit(backbone)
        return PromptTensor(vectors, start, scale, self, SoftPrompt, head_unit=unit)


class PromptTuning(BehindShots, EmbeddingTraining, Method):
    """Prompt tuning as a method: from initial vectors on."""

    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")
    init: Init | None = Field(None, description="initial vectors; by default text, or vocabulary without words")
    init_text: str | None = Field(None, description="words to start from in place of the template's own")
    calibration: Calibrated = CalibrationKind.FITTED
    verbalizer: Verbalized = VerbalizerKind.WORDS

    @property
    def reads_label_words(self) -> bool:
        """Whether no vectors take the place of label words."""
        return self.verbalizer is VerbalizerKind.WORDS

    def fit(self, problem: Problem) -> Outcome:
        """Train from the initial vectors; the best prompt on dev wins, the untuned one included."""
        return self.tuned_behind(problem, self._tuned)

    def _tuned(self, problem: Problem) -> Outcome:
        untuned, selection = begin(problem, self.calibration)
        init = self.init or (Init.TEXT if problem.initial_ids or self.init_text else Init.VOCABULARY)
        vectors = initial_vectors(problem, init, self.prompt_length, self.init_text)
        with problem.in_time():
            head = None if problem.backbone.has_words else fit_head(problem, SoftPrompt(vectors))
            for start in verbalized(problem, SoftPrompt(vectors, head), self.verbalizer, self.calibration):
                self.refine(problem, start, selection)
        return selection.outcome(untuned)


class PTuning(PromptTuning):
    """P-tuning: prompt tuning through a prompt encoder. The encoder's output is kept, the encoder is not."""

    name: ClassVar[str] = "p-tuning"

    encoder: EncoderKind = Field(EncoderKind.LSTM, description="`lstm` (the paper's, with a perceptron) or `mlp`")
    encoder_width: int = Field(256, ge=1, description="of the encoder's position embeddings and hidden layers")
    encoder_learning_rate: float = Field(1e-3, gt=0, description="AdamW step of the encoder's weights")

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        require_read(self, ["learning_rate"], "an encoder is trained, so give encoder_learning_rate")
        return self

    def trainable(self, problem: Problem, start: Candidate) -> PromptTensor:
        """Return an encoder of the prompt's embeddings, to be trained; step 0 has exactly the prompt's logits."""
        backbone = problem.backbone
        vectors = start.prompt.vectors(backbone.embed)
        encoder = PromptEncoder(self.encoder, *(len(vectors), self.encoder_width, vectors.shape[1]), problem.seed)
        scale = embedding_scale(backbone.embedding_matrix())
        rate = self.encoder_learning_rate
        own = encoder.to(backbone.device)
        return PromptTensor(vectors, start, scale, self, SoftPrompt, own, rate, head_unit(backbone))
