"""Prompt encoders: networks that make a prompt's tensor while it is trained, and are dropped afterwards.

P-tuning (Liu et al., 2021, arXiv 2103.10385, section 3.2) runs trained embeddings of the prompt's positions through a
bidirectional LSTM and a two-layer perceptron, or a perceptron alone; prefix-tuning (Li & Liang, ACL 2021, section 4.3)
through a perceptron. Here the last layer starts at zero and what comes out is added to where the prompt starts. So
step 0 is the prompt that training starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cuecraft.seeding import torch_generator


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
