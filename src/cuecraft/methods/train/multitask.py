"""Multitask tuning: one tensor that several tasks share, and a small part of each task's own.

After multitask prompt tuning (Wang et al., ICLR 2023, arXiv 2303.02861): the tasks are trained jointly, a step taking a
batch of one of them; later tasks learn their own part over the frozen shared one (the paper's target adaptation, with
the shared part left as it is). The paper's distillation from prompts of single tasks is left out. What is shared may be
input embeddings, as in the paper, the offsets of a deep cue, or the keys and values of a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, Prompt, SoftPrompt, TaskPart
from cuecraft.backbone.hooks import training
from cuecraft.core.errors import MethodError
from cuecraft.core.events import TrainStep
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import trained_copy
from cuecraft.methods.problem import (
    Calibrated,
    CalibrationKind,
    Outcome,
    Problem,
    Selection,
    require_comparable_words,
    score,
)
from cuecraft.methods.search.space import filled_ids, filled_start
from cuecraft.methods.train.loop import Part, TrainingOptions, train_together
from cuecraft.methods.train.prefix import PrefixTuning
from cuecraft.methods.train.trainable import TrainedHead, embedding_scale
from cuecraft.methods.untuned import starting_point
from cuecraft.task import Task


@dataclass(frozen=True)
class TaskOutcome:
    """What joint training found for one task.

    Args:
        outcome: as any method's; the untuned prompt competes.
        part: the task's own part.
    """

    outcome: Outcome
    part: TaskPart


@dataclass(frozen=True)
class MultitaskOutcome:
    """What joint training found.

    Args:
        shared: `[..., S, w]`, the tensor that all tasks share.
        tasks: by name.
    """

    shared: Tensor
    tasks: Mapping[str, TaskOutcome]


class MultitaskTuning(TrainingOptions):
    """Joint training of several tasks on one backbone."""

    name: ClassVar[str] = "multitask"

    share: Literal["embeddings", "offsets", "states"] = Field(
        "offsets", description="`embeddings` of the prompt, `offsets` of a deep cue, or `states` of a prefix"
    )
    rank: int = Field(2, ge=1, description="of a task's own product")
    prompt_length: int | None = Field(
        None, ge=1, description="tuned positions; by default the longest template words, of a prefix 8"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="AdamW step, in the RMS of embeddings or states; by default 0.1 for offsets, else 0.02",
    )
    head_learning_rate: float = Field(0.01, gt=0, description="AdamW step of a class head")
    calibration: Calibrated = CalibrationKind.FITTED

    @training()
    def fit_tasks(self, problems: Mapping[str, Problem]) -> MultitaskOutcome:
        """Train all tasks jointly; what is kept is the epoch of least mean dev loss over the tasks.

        Args:
            problems: by task name; all over one backbone. The first one's seed, time limit and checkpoints count.

        Raises:
            MethodError: fewer than two tasks, or tasks over different backbones.
        """
        if len(problems) < 2:
            raise MethodError("multitask tuning needs two tasks or more; tune a single one with another method")
        backbones = {id(problem.backbone) for problem in problems.values()}
        if len(backbones) > 1:
            raise MethodError("the tasks are over different backbones; load one and read all tasks with it")
        length = self.prompt_length or max(len(filled_ids(problem, None)) for problem in problems.values())
        shared = self._first_shared(next(iter(problems.values())), length).requires_grad_()
        begun = {name: self._begin(problem, shared) for name, problem in problems.items()}
        return self._train(problems, begun, shared, [shared])

    @training()
    def add_task(self, problem: Problem, shared: Tensor) -> TaskOutcome:
        """Train one more task's own part over the shared tensor, which stays as it is.

        Raises:
            MethodError: the shared tensor does not fit.
        """
        expected = self._first_shared(problem, shared.shape[-2]).shape
        if shared.shape != expected:
            raise MethodError(
                f"the shared part is {list(shared.shape)}, but this backbone takes {list(expected)}; "
                "it was made for another backbone, or shares something else"
            )
        frozen = shared.detach().float().to(problem.backbone.device)
        begun = {"task": self._begin(problem, frozen)}
        return self._train({"task": problem}, begun, frozen, []).tasks["task"]

    def longest_prompt(self) -> int:
        """Return the positions to keep free: a prefix stands before the template's words, which need theirs too."""
        return (Task.reserve if self.share == "states" else 0) + (self.prompt_length or 0)

    def _begin(self, problem: Problem, shared: Tensor) -> _Begun:
        require_comparable_words(problem, self.name)
        untuned = starting_point(problem, problem.initial_ids, self.calibration)
        if self.share == "states":
            (start,) = PrefixTuning(calibration=self.calibration).starting_at(problem, shared.detach())
            return _Begun(untuned, start)
        return _Begun(untuned, filled_start(problem, untuned, shared.shape[-2], self.calibration))

    def _first_shared(self, problem: Problem, length: int) -> Tensor:
        backbone = problem.backbone
        if self.share == "states":
            prefix = PrefixTuning() if self.prompt_length is None else PrefixTuning(prefix_length=length)
            return trained_copy(prefix.initial_states(problem))
        if self.share == "embeddings":
            return trained_copy(HardPrompt(filled_ids(problem, length)).vectors(backbone.embed))
        return torch.zeros(backbone.offsets_shape(length), device=backbone.device)

    def _train(
        self, problems: Mapping[str, Problem], begun: Mapping[str, _Begun], shared: Tensor, trained: Sequence[Tensor]
    ) -> MultitaskOutcome:
        tasks = {
            name: _TaskTensor(self, problem, begun[name].start, shared, trained) for name, problem in problems.items()
        }
        # These choose nothing: the epoch is chosen for all tasks at once, as they share a tensor.
        watching = {name: Selection(problem) for name, problem in problems.items()}
        train_together(self, [Part(problems[name], task, watching[name]) for name, task in tasks.items()])
        outcomes = {}
        for name, task in tasks.items():
            problem, found = problems[name], task.snapshot()
            selection = Selection(problem, trace=watching[name].trace)
            for candidate, phase in ((begun[name].untuned, "untuned"), (found, "joint")):
                selection.see(candidate, score(problem.backbone, candidate, problem.train), TrainStep(phase, 0))
            outcomes[name] = TaskOutcome(selection.outcome(begun[name].untuned), task.part())
        return MultitaskOutcome(shared.detach().clone(), outcomes)


@dataclass(frozen=True)
class _Begun:
    """A task's untuned prompt, and the prompt of the common length that training starts from."""

    untuned: Candidate
    start: Candidate


class _TaskTensor:
    """One task in training: its own part, its class head, and the tensor that it shares."""

    def __init__(
        self, options: MultitaskTuning, problem: Problem, start: Candidate, shared: Tensor, trained: Sequence[Tensor]
    ) -> None:
        *leading, length, width = shared.shape
        scale = embedding_scale(shared if options.share == "states" else problem.backbone.embedding_matrix())
        rate = options.learning_rate or (0.1 if options.share == "offsets" else 0.02)
        noise = torch.randn(*leading, length, options.rank, generator=torch_generator(problem.seed, "multitask"))
        zeros = (torch.zeros(*leading, options.rank, width), torch.zeros(*leading, 1, width))
        parts = [part.to(shared.device).requires_grad_() for part in (noise, *zeros)]
        self._shared = shared
        self._part = TaskPart(*parts)
        self._start = start
        self._build = _builder(options, start)
        self._head = TrainedHead(start.prompt.head, options.head_learning_rate)
        self._groups: list[dict[str, Any]] = [
            {"params": [*trained, self._part.offset], "lr": rate * scale},
            {"params": parts[:2], "lr": rate},  # factors have no unit
        ]

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups."""
        return [*self._groups, *self._head.groups()]

    def candidate(self) -> Candidate:
        """Return the candidate as a differentiable function of the trained tensors."""
        return replace(self._start, prompt=self._head.on(self._build(self._part.of(self._shared))))

    def snapshot(self) -> Candidate:
        """Return the candidate as it is now, independent of further training."""
        with torch.no_grad():
            value = self.part().of(self._shared)
        return replace(self._start, prompt=self._head.frozen_on(self._build(value)))

    def penalty(self) -> Tensor:
        """Return nothing."""
        return torch.zeros(())

    def part(self) -> TaskPart:
        """Return the task's own part as it is now."""
        return TaskPart(*(part.detach().clone() for part in (self._part.left, self._part.right, self._part.offset)))


def _builder(options: MultitaskTuning, start: Candidate) -> Callable[[Tensor], Prompt]:
    """Return what makes a prompt of a task's tensor."""
    if options.share == "embeddings":
        return SoftPrompt
    prompt = start.prompt
    if prompt.states is not None:
        return lambda states: PrefixPrompt(prompt, states)
    assert prompt.kind == "hard"
    return lambda offsets: DeepCue(prompt, offsets)
