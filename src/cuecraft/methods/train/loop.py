"""The one training loop of all methods that train, with early stopping and resuming.

It trains one candidate, several tasks of one prompt, or several candidates side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, count, zip_longest
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.hooks import gradient_checkpointing
from cuecraft.core.checkpoints import kept_when_stopped
from cuecraft.core.events import Scored, TrainStep
from cuecraft.core.options import Options
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import accumulate_gradients
from cuecraft.methods.objectives import Score, Scores
from cuecraft.methods.problem import Labelled, Problem, Selection, score, with_scores


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


class LoopOptions(Options):
    """Options of the training loop."""

    name: ClassVar[str]

    epochs: int = Field(30, ge=1, description="passes over the training examples, at most")
    batch_size: int = Field(16, ge=1, description="training examples of one step")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="of the learning rates; `linear` lets them fall to zero over all epochs"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    gradient_checkpointing: bool = Field(
        False, description="keep less for the gradient and compute the layers twice: less memory, more time"
    )

    @property
    def title(self) -> str:
        """As shown where several trainings are compared."""
        return self.name

    def is_spent(self, epochs: int) -> bool:
        """Return whether to stop after so many epochs without a better loss."""
        return False


class TrainingOptions(LoopOptions):
    """Options of the training loop with early stopping."""

    patience: int = Field(8, ge=1, description="epochs without a better dev loss before training stops")

    def is_spent(self, epochs: int) -> bool:
        """Return whether to stop after so many epochs without a better loss."""
        return epochs >= self.patience


class Criterion(ABC):
    """What a training minimises, and how its batches are drawn."""

    @abstractmethod
    def drawn(self, parts: Sequence[Part], size: int, orders: Sequence[torch.Generator]) -> list[Step]:
        """Return an epoch's steps, for batches of `size` examples."""

    @abstractmethod
    def take(
        self, backbone: AnyBackbone, parts: Sequence[tuple[Callable[[], Candidate], Labelled]], trained: list[Tensor]
    ) -> list[Tensor]:
        """Set the gradients of one step; return the loss and the score of each text of its batches `[b, 2]`.

        Args:
            backbone: the problem's.
            parts: what makes the candidate of each batch as a differentiable function of the trained tensors; and the
                batch.
            trained: the leaves, whose gradients are replaced.
        """

    @abstractmethod
    def seen(self, found: Tensor, batch: Labelled) -> Score:
        """Return the means of what `take` gave `[b, 2]` for some examples."""

    @abstractmethod
    def at_start(self, part: Part, candidate: Candidate, size: int) -> Score:
        """Return the score of a candidate on the training examples before the first step, for batches of `size`."""


class MeanLoss(Criterion):
    """The mean loss of each candidate, by the objective of its task's answers."""

    def drawn(self, parts: Sequence[Part], size: int, orders: Sequence[torch.Generator]) -> list[Step]:
        """Return a batch of each part for each step, in an order of its own."""
        batches = [_batches(n, part, size, order) for n, (part, order) in enumerate(zip(parts, orders, strict=True))]
        return side_by_side(batches)

    def take(
        self, backbone: AnyBackbone, parts: Sequence[tuple[Callable[[], Candidate], Labelled]], trained: list[Tensor]
    ) -> list[Tensor]:
        """Return loss and primary score of each text of each batch `[b, 2]`."""
        found = accumulate_gradients(backbone, parts, trained)
        return [torch.stack([own.losses, own.primary], dim=1) for own in found]

    def seen(self, found: Tensor, batch: Labelled) -> Score:
        """Return the means by the examples' weights."""
        return Scores(found[:, 0], found[:, 1], batch.weights, batch.golds.measure).mean

    def at_start(self, part: Part, candidate: Candidate, size: int) -> Score:
        """Return the score of a candidate's answers."""
        return score(part.problem.backbone, candidate, part.problem.train)


class MixedMeanLoss(MeanLoss):
    """The same, with a batch of one part for each step."""

    def drawn(self, parts: Sequence[Part], size: int, orders: Sequence[torch.Generator]) -> list[Step]:
        """Return a batch of one part after another, in a random order."""
        (order,) = orders
        batches = [batch for n, part in enumerate(parts) for batch in _batches(n, part, size, order)]
        return [[batches[n]] for n in torch.randperm(len(batches), generator=order).tolist()]


@dataclass(frozen=True)
class Part:
    """One task of a training, which may share tensors with others, or one candidate of several.

    Args:
        problem: the task and its examples.
        trainable: what is trained on it.
        selection: keeps its best candidate.
    """

    problem: Problem
    trainable: Trainable
    selection: Selection


@dataclass
class Latest(Selection):
    """Keeps the candidate after the last whole epoch; how good it is, others find out."""

    @property
    def epochs(self) -> int:
        """Whole epochs that were seen."""
        return int(self.trace[-1]["step"]) if self.trace else 0

    def see(self, candidate: Candidate, train: Score, event: Scored, dev: Score | None = None) -> bool:
        """Take note of an epoch; keep its candidate, unless it is the start, before the first one."""
        self.last_score = train
        self.note(with_scores(event, train))
        if not self.epochs:
            return False
        self.best, self.best_score = candidate, train
        return True


#: Batches of one step, each the number of a part and rows of it.
Step = list[tuple[int, list[int]]]


def train(options: LoopOptions, problem: Problem, trainable: Trainable, selection: Selection) -> None:
    """Train with AdamW and early stopping on dev; `selection` keeps the best candidate, step 0 included.

    Each epoch takes all training examples in a random order that depends on the seed alone.
    """
    train_side_by_side(options, [Part(problem, trainable, selection)])


def train_side_by_side(options: LoopOptions, parts: Sequence[Part], criterion: Criterion | None = None) -> None:
    """Train several candidates of one backbone that share no tensor; a step takes a batch of each.

    Each is trained as `train` trains it alone, but for the last bits of what is computed: what all of a step's batches
    take goes through the model together, which costs less where a batch alone is small (`class_logits_each`). Where
    one has more batches than another, the learning rates of both fall by its steps. The parts stop together. Time
    limit and state on disk follow the first part's problem.

    Args:
        options: of the loop.
        parts: the candidates.
        criterion: what is minimised; None for the mean loss.
    """
    seeds = [part.problem.seed for part in parts]
    _Training(options, parts, seeds, criterion or MeanLoss()).run()


def train_together(options: LoopOptions, parts: Sequence[Part]) -> None:
    """Train on several tasks at once; a step takes a batch of one of them.

    Stops when the mean loss of the parts has not fallen for a while (`Selection` says which loss), and leaves the
    trained tensors as they were when it was least. Order, time limit and state on disk follow the first part's problem.
    """
    training = _Training(options, parts, [parts[0].problem.seed], MixedMeanLoss())
    training.keep_least()
    training.run()
    training.back_to_least()


def side_by_side(batches: Sequence[Step]) -> list[Step]:
    """Return an epoch's steps: a batch of each part, as long as it has some."""
    return [[batch for batch in step if batch is not None] for step in zip_longest(*batches)]


def _batches(number: int, part: Part, size: int, order: torch.Generator) -> Step:
    """Return batches of all rows of a part in a random order."""
    rows = torch.randperm(len(part.problem.train), generator=order).tolist()
    return [(number, rows[start : start + size]) for start in range(0, len(rows), size)]


class _Training:
    """A training in progress: parts, optimizer, order, and how far it has come."""

    def __init__(
        self,
        options: LoopOptions,
        parts: Sequence[Part],
        seeds: Sequence[int],
        criterion: Criterion,
    ) -> None:
        self._options = options
        self._parts = parts
        self._criterion = criterion
        groups = _distinct([group for part in parts for group in part.trainable.groups()])
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self._rates: list[float] = [group["lr"] for group in self._optimizer.param_groups]
        self._tensors: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
        first = parts[0].problem
        self._orders = [torch_generator(seed, "order") for seed in seeds]
        self._slot = first.slot(options.name)
        self._epoch = 0
        self._steps: list[Step] = []  # of the epoch in progress
        self._found: list[list[Tensor]] = []  # what the batches of those gave that were taken [b, 2]
        self._best: dict[int, list[Tensor]] = {}  # of each part that this training improved: the tensors at its best
        self._least: float | None = None  # mean loss of the parts
        self._since_least = 0
        self._at_least: list[Tensor] | None = None  # the tensors then; None where they are not needed

    def keep_least(self) -> None:
        """Keep the tensors of the epoch of least mean loss: a copy of all that is trained."""
        self._at_least = [tensor.detach().clone() for tensor in self._tensors]

    def run(self) -> None:
        """Train to the end, from the state on disk where there is one."""
        with self._parts[0].problem.in_time():  # what the time ends within is not looked at, as an epoch cut short
            self.begin()
            while not self.is_over():
                if not self.take_epoch():
                    return
            self.save()

    def begin(self) -> None:
        """See the candidates as they are before the first step, or go on from the state on disk."""
        state = self._slot.load()
        if state is not None:
            self._restore(*state)
            return
        for number, part in enumerate(self._parts):
            candidate = part.trainable.snapshot()
            self._see(number, candidate, self._criterion.at_start(part, candidate, self._options.batch_size))
        self._judge()

    def is_over(self) -> bool:
        """Return whether to stop: epochs, time, or patience, which needs dev sets."""
        if self._steps:
            return False
        if self._epoch >= self._options.epochs or (self._epoch and self._out_of_time()):
            return True
        is_spent = self._options.is_spent(self._since_least)
        return is_spent and all(part.problem.dev is not None for part in self._parts)

    def take_epoch(self) -> bool:
        """Take all batches of all parts once, and see the candidates; return whether there was time for all of them."""
        if not self._steps:
            self._epoch += 1
            self._steps = self._criterion.drawn(self._parts, self._options.batch_size, self._orders)
            self._found = []
        while len(self._found) < len(self._steps):
            done = len(self._found)
            self._set_rates((self._epoch - 1 + done / len(self._steps)) / self._options.epochs)
            if self._out_of_time():
                return False  # an epoch that is cut short is not looked at
            self._found.append(self._take(self._steps[done]))
            if len(self._found) < len(self._steps):
                self._save_if_due()
        taken = list(zip(chain(*self._steps), chain(*self._found), strict=True))
        for number, part in enumerate(self._parts):
            own = [(rows, given) for (n, rows), given in taken if n == number]
            rows, given = [row for rows, _ in own for row in rows], torch.cat([given for _, given in own])
            found = self._criterion.seen(given, part.problem.train.select(rows))
            self._see(number, part.trainable.snapshot(), found)
        self._judge()
        self._steps, self._found = [], []
        self._save_if_due()
        return True

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
        _set(self._tensors, self._at_least)

    def save(self) -> None:
        """Write the state to disk, where the run keeps one."""
        if not self._slot.keeps:
            return
        tensors = {f"trained/{n}": tensor for n, tensor in enumerate(self._tensors)}
        tensors |= {f"order/{n}": order.get_state() for n, order in enumerate(self._orders)}
        for n, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adamw/{n}/{name}": value for name, value in values.items()}
        for number, best in self._best.items():
            tensors |= {f"best/{number}/{n}": tensor for n, tensor in enumerate(best)}
        tensors |= {f"least/{n}": tensor for n, tensor in enumerate(self._at_least or [])}
        tensors |= {f"found/{n}": tensor for n, tensor in enumerate(chain(*self._found))}
        document = {
            "epoch": self._epoch,
            "steps": self._steps,
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
        for n, order in enumerate(self._orders):
            order.set_state(tensors[f"order/{n}"])
        self._steps = [[(number, rows) for number, rows in step] for step in document["steps"]]
        device, numbers = self._parts[0].problem.backbone.device, count()
        self._found = [
            [tensors[f"found/{next(numbers)}"].to(device) for _ in step] for step in self._steps[: document["taken"]]
        ]
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split("/")
            if kind == "adamw":
                entries.setdefault(int(rest[0]), {})[rest[1]] = tensor
            elif kind == "best":
                own = len(_trained(self._parts[int(rest[0])]))
                self._best.setdefault(int(rest[0]), [torch.empty(0)] * own)[int(rest[1])] = tensor
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": entries})
        for number, (part, state) in enumerate(zip(self._parts, document["parts"], strict=True)):
            best = None
            if number in self._best:
                _set(_trained(part), self._best[number])
                best = part.trainable.snapshot()
            part.selection.restore(state, best)
        _set(self._tensors, [tensors[f"trained/{n}"] for n in range(len(self._tensors))])

    def _see(self, number: int, candidate: Candidate, seen: Score) -> None:
        step = TrainStep(self._options.name, self._epoch, self._options.epochs)
        if self._parts[number].selection.see(candidate, seen, step) and self._slot.keeps:
            self._best[number] = [tensor.detach().clone() for tensor in _trained(self._parts[number])]

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

    def _take(self, step: Step) -> list[Tensor]:
        """Take one step; return what its batches gave before it."""
        parts = [self._parts[number] for number, _ in step]
        batches = [part.problem.train.select(rows) for part, (_, rows) in zip(parts, step, strict=True)]
        backbone, candidates = parts[0].problem.backbone, [part.trainable.candidate for part in parts]
        with gradient_checkpointing() if self._options.gradient_checkpointing else nullcontext():
            found = self._criterion.take(backbone, list(zip(candidates, batches, strict=True)), self._tensors)
        for part in parts:
            penalty = part.trainable.penalty()
            if penalty.requires_grad:
                penalty.backward()
            torch.nn.utils.clip_grad_norm_(_trained(part), self._options.gradient_clip)
        self._optimizer.step()
        return found


def _trained(part: Part) -> list[Tensor]:
    """Return the tensors that are trained on a part."""
    return [tensor for group in part.trainable.groups() for tensor in group["params"]]


@torch.no_grad()
def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give tensors their values."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


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
