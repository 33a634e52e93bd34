"""The one training loop of the continuous methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.method import (
    Candidate,
    Labelled,
    Options,
    Problem,
    Score,
    Selection,
    accumulate_gradient,
    score,
)
from cuecraft.prompts import AnyPrompt, Calibration
from cuecraft.seeding import torch_generator


class Trainable(Protocol):
    """What a continuous method trains."""

    def groups(self) -> list[dict[str, object]]:
        """Return AdamW parameter groups: tensors and their learning rates."""
        ...

    def prompt(self) -> AnyPrompt:
        """Return the prompt as a differentiable function of the trained tensors."""
        ...

    def snapshot(self) -> AnyPrompt:
        """Return the prompt as it is now, detached and independent of further training."""
        ...

    def penalty(self) -> Tensor:
        """Return what is added to the loss, such as a pull toward the initial prompt (scalar)."""
        ...


class TrainingOptions(Options):
    """Options of the training loop."""

    name: ClassVar[str]

    epochs: int = Field(30, ge=1, description="passes over the training examples, at most")
    batch_size: int = Field(16, ge=1, description="training examples of one step")
    patience: int = Field(8, ge=1, description="epochs without a better dev loss before training stops")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")


def train(
    options: TrainingOptions,
    problem: Problem,
    trainable: Trainable,
    calibration: Calibration,
    selection: Selection,
) -> None:
    """Train with AdamW and early stopping on dev; `selection` keeps the best prompt, step 0 included.

    Each epoch takes all training examples in a random order that depends on the seed alone.
    """
    optimizer = torch.optim.AdamW(trainable.groups(), weight_decay=0.0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = torch_generator(problem.seed, "order")
    data = problem.train
    first = Candidate(trainable.snapshot(), calibration)
    details = {"phase": options.name, "total": options.epochs}
    selection.see(first, score(problem.backbone, first, data), step=0, **details)
    selection.since_best = 0
    for epoch in range(1, options.epochs + 1):
        rows = torch.randperm(len(data), generator=order).tolist()
        logits = torch.cat(
            [
                _step(
                    problem,
                    trainable,
                    calibration,
                    data.select(batch),
                    optimizer,
                    parameters,
                    options.gradient_clip,
                )
                for batch in _batches(rows, options.batch_size)
            ]
        )
        seen = Score.of(logits, data.labels[rows])
        selection.see(Candidate(trainable.snapshot(), calibration), seen, step=epoch, **details)
        if problem.out_of_time() or (problem.dev and selection.since_best >= options.patience):
            break


def _step(
    problem: Problem,
    trainable: Trainable,
    calibration: Calibration,
    batch: Labelled,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    clip: float,
) -> Tensor:
    """Take one step; return the batch's logits `[b, C]` before it."""
    logits = accumulate_gradient(problem, lambda: Candidate(trainable.prompt(), calibration), batch, parameters)
    penalty = trainable.penalty()
    if penalty.requires_grad:
        penalty.backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return logits


def _batches(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
