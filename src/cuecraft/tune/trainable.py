"""What the training loop trains: a tensor of the prompt, and a class head where there is one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.backbone import ClassHead
from cuecraft.method import trained_copy
from cuecraft.prompts import AnyPrompt
from cuecraft.tune.loop import TrainingOptions


class TensorOptions(TrainingOptions):
    """Options of training one tensor of the prompt."""

    learning_rate: float = Field(0.02, gt=0, description="AdamW step, in units of the embeddings' RMS")
    head_learning_rate: float = Field(0.01, gt=0, description="AdamW step of a class head")
    pull: float = Field(0.0, ge=0, description="weight of the mean squared move from the start, in RMS units")


class PromptTensor:
    """A tensor of the prompt in training, and its class head where there is one.

    Args:
        start: the tensor's first value.
        head: the class head's first value.
        scale: RMS of the embeddings, the unit of learning rate and pull.
        options: the method's options.
        build: makes a prompt of the tensor and the head.
    """

    def __init__(
        self,
        start: Tensor,
        head: ClassHead | None,
        scale: float,
        options: TensorOptions,
        build: Callable[[Tensor, ClassHead | None], AnyPrompt],
    ) -> None:
        self._start = trained_copy(start)
        self._tensor = self._start.clone().requires_grad_()
        self._head = head and ClassHead(
            head.weight.detach().clone().requires_grad_(), head.bias.detach().clone().requires_grad_()
        )
        self._scale = scale
        self._options = options
        self._build = build

    def groups(self) -> list[dict[str, object]]:
        """Return AdamW parameter groups."""
        options = self._options
        groups: list[dict[str, object]] = [{"params": [self._tensor], "lr": options.learning_rate * self._scale}]
        if self._head:
            groups.append({"params": [self._head.weight, self._head.bias], "lr": options.head_learning_rate})
        return groups

    def prompt(self) -> AnyPrompt:
        """Return the prompt as a differentiable function of the trained tensors."""
        return self._build(self._tensor, self._head)

    def snapshot(self) -> AnyPrompt:
        """Return the prompt as it is now, independent of further training."""
        head = self._head and ClassHead(self._head.weight.detach().clone(), self._head.bias.detach().clone())
        return self._build(self._tensor.detach().clone(), head)

    def penalty(self) -> Tensor:
        """Return the pull toward the start."""
        if not self._options.pull:
            return torch.zeros((), device=self._tensor.device)
        return self._options.pull * ((self._tensor - self._start) / self._scale).square().mean()


def embedding_scale(embeddings: Tensor) -> float:
    """Return the root mean square of the embeddings `[V, d]`."""
    return float(embeddings.float().square().mean().sqrt())
