"""What runs report while they work: one frozen event for each step.

An event is also readable as a mapping, which is what it is on disk: `event["step"]`, `dict(event)`, `event.document()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

#: An event as traces and files hold it, JSON-ready.
Document = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Event(Mapping[str, Any]):
    """One step of some work; equal to another event, or a mapping, of the same document.

    Args:
        phase: of the work, such as a method's name.
        step: its number; None where steps are not numbered.
        total: how many steps there will be at most; None where that is not known.
    """

    phase: str
    step: int | None = None
    total: int | None = None

    def document(self) -> Document:
        """Return its fields that have a value, JSON-ready, without times."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in values if value is not None}

    def __getitem__(self, name: str) -> Any:
        return self.document()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.document())

    def __len__(self) -> int:
        return len(self.document())


@dataclass(frozen=True, eq=False)
class Progress(Event):
    """So many of all rows, or parts of the work, are done."""


@dataclass(frozen=True, eq=False)
class Answered(Progress):
    """So many of all texts were answered; `padding` is its share of the tokens read, 0 to 1."""

    phase: str = "predict"
    padding: float | None = field(default=None, kw_only=True)


_SCORES = ("train_loss", "train_score", "dev_loss", "dev_score", "best")


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored(Event):
    """A prompt was scored.

    Args:
        train_loss: mean loss on the training examples (nats).
        train_score: mean primary score on them.
        dev_loss: the same on dev.
        dev_score: the same on dev.
        best: whether it is the best so far.
        measure: the name of the primary score, which a document has in place of `score`: `train_accuracy`.
    """

    train_loss: float | None = None
    train_score: float | None = None
    dev_loss: float | None = None
    dev_score: float | None = None
    best: bool | None = None
    measure: str = "accuracy"

    def document(self) -> Document:
        """Return its fields that have a value, the scores last."""
        found = super().document()
        del found["measure"]
        scores = {name.replace("score", self.measure): found.pop(name) for name in _SCORES if name in found}
        return found | scores


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainStep(Scored):
    """An epoch of a training, or a fit, is over."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchStep(Scored):
    """A search has tried words.

    Args:
        vocabulary: filters of the words that may be used, and how many are left after each.
        accepted: whether a swap was taken.
        position: that was swapped.
        token_ids: of the prompt.
        prompt: in words.
        prompts: in words, of several that answer together.
        log_likelihood: of the prompt under the backbone, a token, in nats.
        shots: examples in front of the text.
        choice: how they were chosen.
    """

    vocabulary: list[dict[str, Any]] | None = None
    accepted: bool | None = None
    position: int | None = None
    token_ids: list[int] | None = None
    prompt: str | None = None
    prompts: list[str] | None = None
    log_likelihood: float | None = None
    shots: int | None = None
    choice: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutStep(Event):
    """Something, called `tried`, was measured on held-out folds: mean loss in nats, mean primary score by its name."""

    tried: str
    dev_loss: float
    dev_score: float
    measure: str = "accuracy"

    def document(self) -> Document:
        """Return its fields that have a value."""
        found = super().document()
        return found | {f"dev_{found.pop('measure')}": found.pop("dev_score")}


@dataclass(frozen=True, eq=False, kw_only=True)
class Refused(Event):
    """Something could not be tried."""

    phase: str = "refused"
    reason: str


#: Called with each part of some work, and returns the progress callback of its steps.
Started = Callable[[str], Callable[[Event], None]]
