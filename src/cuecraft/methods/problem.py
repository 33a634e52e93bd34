"""What every method meets: a problem to solve, an outcome to return, and the few steps that all share.

To add a method, write one module with a subclass of `Method` and name it in `cuecraft.methods.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact.calibration import HeadFit
from cuecraft.artifact.manifest import DataEntry
from cuecraft.backbone import AnyBackbone, ClassHead, Context, FeatureScale
from cuecraft.backbone.hooks import ordinary_tensors, training
from cuecraft.core.checkpoints import Checkpoints, NoSlot, Slot
from cuecraft.core.deadline import Clock, WhileTimeLasts
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Document, Event, HeldOutStep, Scored
from cuecraft.core.options import Options
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import EvidenceVerdict, Tried
from cuecraft.methods.objectives import Golds, Objective, Score, Scores, objective_of
from cuecraft.task import AnswerSpace, Example, Task


class CalibrationKind(StrEnum):
    """How class logits are corrected before they are compared."""

    NONE = "none"
    CONTEXTUAL = "contextual"
    BATCH = "batch"
    FITTED = "fitted"


#: The option of methods that calibrate.
Calibrated = Annotated[
    CalibrationKind, Field(description="correction of class logits: none, contextual, batch or fitted")
]


@dataclass(frozen=True)
class Labelled:
    """A context, its right answers `[B]` and, where they are not alike, the weights `[B]` of its examples."""

    context: Context
    golds: Golds
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.golds)

    @property
    def labels(self) -> Tensor:
        """Class numbers `[B]`, for methods that compare classes; raises as `Golds.classes`."""
        return self.golds.classes

    def scores(self, values: Tensor) -> Scores:
        """Return how good values `[..., B, O]` are as answers, by the examples' weights."""
        return self.golds.scores(values, self.weights)

    def fitted_head(
        self, features: Tensor, inverse_penalty: float = 1.0, scale: FeatureScale = FeatureScale.PLAIN
    ) -> ClassHead:
        """Return the class head fitted to features `[B, d]`; arguments and errors as for `Objective.fitted_head`."""
        fit = HeadFit(inverse_penalty, self.weights, scale)
        return self.golds.objective.fitted_head(features, self.golds.values, fit)

    def decided_by(self, answers: AnswerSpace) -> Labelled:
        """Return the same examples, whose answers are scored as an answer space of the same options decides."""
        return replace(self, golds=replace(self.golds, objective=objective_of(answers)))

    def select(self, rows: list[int]) -> Labelled:
        """Return some of the examples."""
        return Labelled(self.context.select(rows), self.golds.select(rows), self.weights_of(rows))

    def weights_of(self, rows: list[int]) -> Tensor | None:
        """Return the weights of some of the examples; None where all count alike."""
        return None if self.weights is None else self.weights[rows]

    def joined(self, other: Labelled) -> Labelled:
        """Return these examples and then others of the same task."""
        weights = None
        if self.weights is not None or other.weights is not None:
            own = [torch.ones(len(d), device=d.golds.device) if d.weights is None else d.weights for d in (self, other)]
            weights = torch.cat(own)
        return Labelled(self.context.joined(other.context), self.golds.joined(other.golds), weights)

    def chunks(self, size: int) -> Iterator[Labelled]:
        """Yield the examples in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.select(list(range(start, min(start + size, len(self)))))


@dataclass(frozen=True)
class Problem:
    """What a method is given.

    Args:
        backbone: the frozen model.
        task: template and answer space.
        train: examples to learn from.
        dev: examples to choose and stop by; None to choose by the training loss.
        seed: of everything random.
        data: row count and hash of each split.
        out_of_time: tells a method to stop with the best so far: whether fewer than `reserve` seconds are left. Asked
            between steps, and may raise StoppedError.
        is_over: whether the time limit is over; asked within passes too, which end there (`in_time`). Raises nothing.
        report: progress callback, called with each step; never affects the result.
        checkpoints: where trainings keep their state, to go on from after a crash; None to keep none.
    """

    backbone: AnyBackbone
    task: Task
    train: Labelled
    dev: Labelled | None
    seed: int = 0
    data: Mapping[str, DataEntry] = field(default_factory=dict)
    out_of_time: Clock = lambda reserve=0.0: False
    is_over: Callable[[], bool] = lambda: False
    report: Callable[[Event], None] = lambda event: None
    checkpoints: Checkpoints | None = None

    def slot(self, name: str) -> Slot | NoSlot:
        """Return the place for the state of the next training or search."""
        return self.checkpoints.slot(name) if self.checkpoints else NoSlot()

    def in_time(self) -> WhileTimeLasts:
        """Return a context in which passes end with the time limit; what was kept until then stays."""
        return WhileTimeLasts(self.is_over)

    @property
    def objective(self) -> Objective:
        """What is minimised on the task's kind of answers."""
        return objective_of(self.task.answers)

    @property
    def pool(self) -> Labelled:
        """The training and dev examples together, in this order; nothing is read again."""
        return self.train if self.dev is None else self.train.joined(self.dev)

    @property
    def initial_ids(self) -> tuple[int, ...]:
        """Token ids of the words that the template writes in its prompt slot."""
        return self.train.context.renderer.prompt_ids


@ordinary_tensors()
def label_context(backbone: AnyBackbone, task: Task, examples: list[Example]) -> Labelled:
    """Read examples and keep their right answers and weights with the context."""
    golds = Golds(objective_of(task.answers), tuple(example.gold for example in examples), backbone.device)
    weights = None
    if any(example.weight is not None for example in examples):
        weights = torch.tensor([1.0 if example.weight is None else example.weight for example in examples])
        weights = weights.to(backbone.device)
    return Labelled(backbone.context(examples, task), golds, weights)


@dataclass(eq=False)
class OtherTask:
    """A `Reader` that has a backbone read the same texts as another task writes them.

    Args:
        backbone: the problem's, or another one.
        task: the other task, of the same classes.
        name: as a reader is called.
    """

    backbone: AnyBackbone
    task: Task
    name: str

    @property
    def size(self) -> int:
        """No numbers were trained."""
        return 0

    def tensors(self) -> Mapping[str, Tensor]:
        """Return nothing: an artifact stores the task."""
        return {}

    @contextmanager
    def over(self, context: Context) -> Iterator[tuple[AnyBackbone, Context]]:
        """Lend the backbone, and its context of the same texts in the other task."""
        yield self.backbone, self.backbone.context(context.examples, self.task, keep_bytes=0)


@torch.no_grad()
def score(backbone: AnyBackbone, candidate: Candidate, data: Labelled) -> Score:
    """Score a candidate on labelled examples."""
    return data.scores(candidate.logits(backbone, data.context)).mean


@dataclass(frozen=True)
class Outcome:
    """What a method returns.

    Args:
        start: the untuned prompt that competed, calibrated as the method calibrates.
        best: the prompt that won.
        trace: the document of one event for each step, without times.
        words: the best prompt in words that was found on the way, where the winner is not in words itself.
        held_out: the score on held-out examples, of a method that learns from the dev set too.
        verdict: why this prompt ships and not the other, of a method that compares them on held-out examples.
        tried: what such a method tried, the best first.
        dev: the score on the dev set, of a method that chooses by it, where there was time for one.
        answers: the answer space with what its decisions take from held-out answers, of a method that has such of its
            own (`Objective.decided`).
    """

    start: Candidate
    best: Candidate
    trace: list[Document]
    words: Candidate | None = None
    held_out: Score | None = None
    verdict: EvidenceVerdict | None = None
    tried: tuple[Tried, ...] = ()
    dev: Score | None = None
    answers: AnswerSpace | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether anything better than the untuned prompt was found."""
        return self.best is not self.start

    @property
    def figures(self) -> Mapping[str, float]:
        """What else the method measured, by name, for the manifest's metrics."""
        return {}

    @property
    def tuned_size(self) -> int:
        """Numbers that were trained, or tokens that were chosen, of the best candidate; 0 where the untuned one won."""
        if not self.is_tuned:
            return 0
        written, reader = self.start.prompt, self.best.reader
        is_written = written.kind == "hard"
        others = [
            own for own in self.best.prompts if not (is_written and own.kind == "hard" and own.tokens == written.tokens)
        ]
        heads = sum(own.head.weight.numel() + own.head.bias.numel() for own in self.best.prompts if own.head)
        sizes = sum(own.size for own in others)
        return sizes + heads + (reader.size if reader else 0)


@dataclass(frozen=True)
class ReadingLimit:
    """How much a method wants to read.

    Args:
        examples: labelled examples, training and dev together, at most.
        share: of its time limit, 0 to 1, that reading may take.
        of_each: examples of each class, of many classes, where these are more in all.
    """

    examples: int
    share: float
    of_each: int = 0


class Method(Options, ABC):
    """A way to find a prompt; its options are the model's fields."""

    name: ClassVar[str]
    #: Whether it answers by a class head of its own, whatever the backbone's; then label words tell nothing.
    has_own_head: ClassVar[bool] = False
    #: Whether weights of examples enter what it minimises.
    weighs_examples: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Check each problem before `fit`, and take gradients in it, also where a caller has switched them off."""
        super().__init_subclass__(**options)
        if "fit" in vars(cls):
            cls.fit = _checked(training()(vars(cls)["fit"]))  # type: ignore[method-assign]

    @property
    def reads_label_words(self) -> bool:
        """Whether it answers by label words where the backbone has words."""
        return not self.has_own_head

    def reading_limit(self) -> ReadingLimit | None:
        """Return how much it wants to read; None for everything."""
        return None

    @abstractmethod
    def fit(self, problem: Problem) -> Outcome:
        """Find a prompt for the problem.

        Raises:
            MethodError: the method cannot work with the problem's backbone.
        """


def _checked(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method's `fit` that refuses a problem whose label words say nothing."""

    @wraps(fit)
    def checked(self: Method, problem: Problem) -> Any:
        if self.reads_label_words:
            require_comparable_words(problem, self.name)
        return fit(self, problem)

    return checked


def require_comparable_words(problem: Problem, name: str) -> None:
    """Raise MethodError where a method reads label words, and there is one alone to compare with others.

    Scores of label words of sets are relative to their mean over the classes (`AnswerSpace.level`): that of a single
    class is 0 for each text.
    """
    if has_single_word(problem):
        (only,) = problem.task.answers.options
        raise MethodError(
            f"{name} compares label words of classes, and {only!r} is the only class; name a second class, or use a "
            "method with a class head (linear-probe, or verbalizer=fitted)"
        )


def has_single_word(problem: Problem) -> bool:
    """Return whether label words say nothing of a text: they are compared, and there is one class."""
    answers = problem.task.answers
    return problem.backbone.has_words and answers.level == "mean" and answers.size == 1


def with_scores(event: Scored, train: Score, dev: Score | None = None, is_best: bool | None = None) -> Scored:
    """Return an event with scores in it."""
    found = replace(event, train_loss=train.loss, train_score=train.primary, best=is_best, measure=train.measure)
    return found if dev is None else replace(found, dev_loss=dev.loss, dev_score=dev.primary)


def held_out_step(phase: str, row: Tried, measure: str) -> HeldOutStep:
    """Return the event of a line of the leaderboard; `measure` is the name of the score."""
    return HeldOutStep(phase, tried=row.name, dev_loss=row.loss, dev_score=row.score, measure=measure)


def note(problem: Problem, trace: list[Document], event: Event) -> None:
    """Add an event to a trace and report it."""
    trace.append(event.document())
    problem.report(event)


@dataclass
class Selection:
    """Keeps the best candidate: least dev loss or, without a dev set, least training loss.

    A later candidate must be strictly better to win, so the untuned prompt, seen first, wins a tie. Records a trace
    event for each candidate that it sees.
    """

    problem: Problem
    trace: list[Document] = field(default_factory=list)
    best: Candidate | None = None
    best_score: Score | None = None
    last_score: Score | None = None  # what the last candidate was rated by

    def see(self, candidate: Candidate, train: Score, event: Scored, dev: Score | None = None) -> bool:
        """Consider a candidate with its training score; return whether it is the best so far.

        Args:
            candidate: the candidate.
            train: its score on the training examples.
            event: the step that found it, without the scores.
            dev: its score on dev, where that is known already.
        """
        if self.problem.dev and dev is None:
            dev = score(self.problem.backbone, candidate, self.problem.dev)
        rated = self.last_score = dev or train
        is_best = self.best_score is None or rated.loss < self.best_score.loss
        if is_best:
            self.best, self.best_score = candidate, rated
        self.note(with_scores(event, train, dev, is_best))
        return is_best

    def note(self, event: Event) -> None:
        """Add an event to the trace and report it."""
        note(self.problem, self.trace, event)

    def state(self) -> dict[str, Any]:
        """Return how far it has come, JSON-ready; the best candidate itself is not in it."""
        return {"trace": self.trace, "best_score": self.best_score and asdict(self.best_score)}

    def restore(self, state: Mapping[str, Any], best: Candidate | None) -> None:
        """Go on from a state; `best` is its best candidate, or None where that was seen before this selection began."""
        self.trace[:] = state["trace"]
        self.best_score = state["best_score"] and Score(**state["best_score"])
        self.best = best or self.best

    def outcome(self, start: Candidate) -> Outcome:
        """Return what was found; the untuned prompt `start` where the time ended before anything was scored."""
        rated = self.best_score if self.problem.dev else None
        return Outcome(start, self.best or start, self.trace, dev=rated)


def require_language_head(problem: Problem, name: str) -> None:
    """Raise MethodError where a method needs words as answers and the backbone has a class head."""
    if not problem.backbone.has_words:
        raise MethodError(
            f"{name} needs a causal or masked language model, but {problem.backbone.name} has only features; "
            "use another method; they fit a class head"
        )
