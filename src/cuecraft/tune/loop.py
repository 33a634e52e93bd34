"""The one training loop of all methods that train: one task or several, with early stopping and resuming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.backbone.layers import gradient_checkpointing
from cuecraft.checkpoints import kept_when_stopped
from cuecraft.method import Candidate, Labelled, Problem, Score, Selection, accumulate_gradient, score
from cuecraft.options import Options
from cuecraft.seeding import torch_generator


class Trainable(Protocol):
    """What a method trains."""

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups: tensors and their learning rates."""
        ...

    def candidate(self) -> Candidate:
        """Return the candidate as a differentiable function of the trained tensors."""
        ...

    def snapshot(self) -> Candidate:
        """Return the candidate as it is now, detached and independent of further training."""
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
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="of the learning rates; `linear` lets them fall to zero over all epochs"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    gradient_checkpointing: bool = Field(
        False, description="keep less for the gradient and compute the layers twice: less memory, more time"
    )


@dataclass(frozen=True)
class Part:
    """One task of a training, which may share tensors with others.

    Args:
        problem: the task and its examples.
        trainable: what is trained on it.
        selection: keeps its best candidate.
    """

    problem: Problem
    trainable: Trainable
    selection: Selection


def train(options: TrainingOptions, problem: Problem, trainable: Trainable, selection: Selection) -> None:
    """Train with AdamW and early stopping on dev; `selection` keeps the best candidate, step 0 included.

    Each epoch takes all training examples in a random order that depends on the seed alone.
    """
    training = _Training(options, [Part(problem, trainable, selection)])
    training.run()


def train_together(options: TrainingOptions, parts: Sequence[Part]) -> None:
    """Train on several tasks at once; a step takes a batch of one of them.

    Stops when the mean loss of the parts has not fallen for a while (`Selection` says which loss), and leaves the
    trained tensors as they were when it was least. Order, time limit and state on disk follow the first part's problem.
    """
    training = _Training(options, parts)
    training.keep_least()
    training.run()
    training.back_to_least()


class _Training:
    """A training under way: parts, optimizer, order, and how far it has come."""

    def __init__(self, options: TrainingOptions, parts: Sequence[Part]) -> None:
        self._options = options
        self._parts = parts
        groups = _distinct([group for part in parts for group in part.trainable.groups()])
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self._rates: list[float] = [group["lr"] for group in self._optimizer.param_groups]
        self._tensors: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
        first = parts[0].problem
        self._order = torch_generator(first.seed, "order")
        self._slot = first.slot(options.name)
        self._epoch = 0
        self._batches: list[tuple[int, list[int]]] = []  # of the epoch under way: which part, which of its rows
        self._found: list[Tensor] = []  # logits [b, C] of those that were taken
        self._best: dict[int, list[Tensor]] = {}  # of each part that this training improved: the tensors at its best
        self._least: float | None = None  # mean loss of the parts
        self._since_least = 0
        self._at_least: list[Tensor] | None = None  # the tensors then; None where nobody asks for them

    def keep_least(self) -> None:
        """Keep the tensors of the epoch of least mean loss: a copy of all that is trained."""
        self._at_least = [tensor.detach().clone() for tensor in self._tensors]

    def run(self) -> None:
        """Train to the end, from the state on disk where there is one."""
        self.begin()
        while not self.is_over():
            if not self.take_epoch():
                return  # the time is over within an epoch
        self.save()

    def begin(self) -> None:
        """See the candidates as they are before the first step, or go on from the state on disk."""
        state = self._slot.load()
        if state is not None:
            self._restore(*state)
            return
        for number, part in enumerate(self._parts):
            candidate = part.trainable.snapshot()
            self._see(number, candidate, score(part.problem.backbone, candidate, part.problem.train))
        self._judge()

    def is_over(self) -> bool:
        """Tell whether to stop: epochs, time, or patience, which needs dev sets."""
        if self._batches:
            return False
        if self._epoch >= self._options.epochs or (self._epoch and self._out_of_time()):
            return True
        return self._since_least >= self._options.patience and all(part.problem.dev is not None for part in self._parts)

    def take_epoch(self) -> bool:
        """Take all batches of all parts once, and see the candidates; return whether there was time for all of them."""
        if not self._batches:
            self._epoch += 1
            self._batches, self._found = self._drawn(), []
        while len(self._found) < len(self._batches):
            done = len(self._found)
            number, rows = self._batches[done]
            self._set_rates((self._epoch - 1 + done / len(self._batches)) / self._options.epochs)
            if self._out_of_time():
                return False  # an epoch that is cut short is not looked at
            self._found.append(self._step(self._parts[number], self._parts[number].problem.train.select(rows)))
            if len(self._found) < len(self._batches):
                self._save_if_due()
        for number, part in enumerate(self._parts):
            taken = [(rows, found) for (n, rows), found in zip(self._batches, self._found, strict=True) if n == number]
            labels = part.problem.train.labels[[row for rows, _ in taken for row in rows]]
            seen = Score.of(torch.cat([found for _, found in taken]), labels)
            self._see(number, part.trainable.snapshot(), seen)
        self._judge()
        self._batches, self._found = [], []
        self._save_if_due()
        return True

    def _drawn(self) -> list[tuple[int, list[int]]]:
        """Return an epoch's batches in a random order: which part, and which of its rows."""
        batches: list[tuple[int, list[int]]] = []
        for number, part in enumerate(self._parts):
            rows = torch.randperm(len(part.problem.train), generator=self._order).tolist()
            size = self._options.batch_size
            batches += [(number, rows[start : start + size]) for start in range(0, len(rows), size)]
        if len(self._parts) > 1:
            mixed = torch.randperm(len(batches), generator=self._order).tolist()
            batches = [batches[n] for n in mixed]
        return batches

    def _out_of_time(self) -> bool:
        with kept_when_stopped(self.save):
            return self._parts[0].problem.out_of_time()

    def _save_if_due(self) -> None:
        if self._slot.due():
            self.save()

    def _set_rates(self, done: float) -> None:
        """Set the learning rates for a step, given the share of the training that is done (0 to 1)."""
        if self._options.schedule == "linear":
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * (1 - done)

    def back_to_least(self) -> None:
        """Give the trained tensors the values that they had when the mean loss was least."""
        assert self._at_least is not None
        self._set(self._at_least)

    def save(self) -> None:
        """Write the state to disk, where the run keeps one."""
        if not self._slot.keeps:
            return
        tensors = {f"trained/{n}": tensor for n, tensor in enumerate(self._tensors)}
        tensors["order"] = self._order.get_state()
        for n, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adamw/{n}/{name}": value for name, value in values.items()}
        for number, best in self._best.items():
            tensors |= {f"best/{number}/{n}": tensor for n, tensor in enumerate(best)}
        tensors |= {f"least/{n}": tensor for n, tensor in enumerate(self._at_least or [])}
        tensors |= {f"found/{n}": tensor for n, tensor in enumerate(self._found)}
        document = {
            "epoch": self._epoch,
            "batches": self._batches,
            "taken": len(self._found),
            "least": self._least,
            "since_least": self._since_least,
            "parts": [part.selection.state() for part in self._parts],
        }
        self._slot.save(document, tensors)

    def _restore(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._epoch, self._least = document["epoch"], document["least"]
        self._since_least = document["since_least"]
        if self._at_least is not None:
            self._at_least = [tensors[f"least/{n}"] for n in range(len(self._tensors))]
        self._order.set_state(tensors["order"])
        self._batches = [(number, rows) for number, rows in document["batches"]]
        device = self._parts[0].problem.backbone.device
        self._found = [tensors[f"found/{n}"].to(device) for n in range(document["taken"])]
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split("/")
            if kind == "adamw":
                entries.setdefault(int(rest[0]), {})[rest[1]] = tensor
            elif kind == "best":
                self._best.setdefault(int(rest[0]), [torch.empty(0)] * len(self._tensors))[int(rest[1])] = tensor
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": entries})
        for number, (part, state) in enumerate(zip(self._parts, document["parts"], strict=True)):
            best = None
            if number in self._best:
                self._set(self._best[number])
                best = part.trainable.snapshot()
            part.selection.restore(state, best)
        self._set([tensors[f"trained/{n}"] for n in range(len(self._tensors))])

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.copy_(value)

    def _see(self, number: int, candidate: Candidate, seen: Score) -> None:
        details: dict[str, Any] = {"phase": self._options.name, "step": self._epoch, "total": self._options.epochs}
        if self._parts[number].selection.see(candidate, seen, **details) and self._slot.keeps:
            self._best[number] = [tensor.detach().clone() for tensor in self._tensors]

    def _judge(self) -> None:
        """Compare the parts' mean loss, on dev where there is one, with the least so far."""
        seen = [part.selection.last_score for part in self._parts]
        mean = math.fsum(rated.loss for rated in seen if rated is not None) / len(seen)
        is_least = self._least is None or mean < self._least
        self._since_least = 0 if is_least else self._since_least + 1
        if is_least:
            self._least = mean
            if self._at_least is not None:
                self._at_least = [tensor.detach().clone() for tensor in self._tensors]

    def _step(self, part: Part, batch: Labelled) -> Tensor:
        """Take one step; return the batch's logits `[b, C]` before it."""
        with gradient_checkpointing() if self._options.gradient_checkpointing else nullcontext():
            logits = accumulate_gradient(part.problem, part.trainable.candidate, batch, self._tensors)
        penalty = part.trainable.penalty()
        if penalty.requires_grad:
            penalty.backward()
        torch.nn.utils.clip_grad_norm_(self._tensors, self._options.gradient_clip)
        self._optimizer.step()
        return logits


def _distinct(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups with each tensor once, at its first place."""
    seen: set[int] = set()
    kept = []
    for group in groups:
        own = [tensor for tensor in group["params"] if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in own}
        if own:
            kept.append(group | {"params": own})
    return kept
