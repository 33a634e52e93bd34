"""What an engine is asked for, what it answers, and how much one request may hold."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from cuecraft.core.errors import DeadlineError, ServeError
from cuecraft.core.options import Options
from cuecraft.serving.registry import PromptRegistry, Served
from cuecraft.task import Decision, Example
from cuecraft.task.rendering import Pieces

TOO_LATE = "the answer was not there in time; allow more time or ask for less at once"


STOPPING = "the server is stopping; ask again elsewhere or later"


def check_asked(texts: Sequence[object], prompts: Sequence[str]) -> None:
    """Raise ServeError where nothing is asked for."""
    if not texts or not prompts:
        raise ServeError("nothing was asked for; give at least one text and one prompt")


@dataclass(frozen=True)
class Answer:
    """What one prompt answers to one text.

    Args:
        prompt: its id.
        version: the hash of its artifact.
        decision: the answer, and the probability of each option.
        is_cut: whether the text was cut at its end to fit.
        has_labels: whether it is one of the classes that all texts share.
    """

    prompt: str
    version: str
    decision: Decision
    is_cut: bool
    has_labels: bool = True

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probability of each option `[O]`."""
        return tuple(self.decision.options.values())


class AnyEngine(Protocol):
    """What a service needs of an engine: one of this process, or one that asks others."""

    @property
    def shelf(self) -> PromptRegistry[Any]:
        """The prompts that it answers with."""
        ...

    @property
    def waiting(self) -> int:
        """Answers that are waited for."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it can still answer, or has ended in order."""
        ...

    def started(self) -> None:
        """Take note of the event loop that runs; requests come from it, and from threads next to it."""
        ...

    def submit(
        self, texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], timeout: float | None = None
    ) -> Future[list[Answer]]:
        """Ask for the answers of some prompts to some texts; see `cuecraft.serving.engine.Engine.submit`."""
        ...

    def close(self, drain: float = 0.0) -> None:
        """Take no more requests; wait up to `drain` seconds for what is in progress."""
        ...


class Watcher:
    """Receives what an engine does; this one ignores it. Its methods must be quick, and safe in any thread."""

    def batched(self, rows: int, texts: int, tokens: int, seconds: float) -> None:
        """Take note of a batch: its rows, the distinct texts among them, their tokens, and how long it took."""

    def answered(self, prompt: str, seconds: float, source: str) -> None:
        """Take note of an answer: how long it took, and whether it was `computed`, `shared` or from the `cache`."""

    def refused(self, reason: str, answers: int) -> None:
        """Take note of answers that were refused: `full`, `deadline`, `closing`, `invalid`, `token`, `rate`, `gone`."""


class Ticket:
    """A request in progress: the answers that are there, and the future of all of them.

    Args:
        size: how many answers it waits for.
        deadline: when it gives up, on the monotonic clock (seconds); None for never.
        born: when it came.
    """

    def __init__(self, size: int, deadline: float | None, born: float) -> None:
        self.future: Future[list[Answer]] = Future()
        self.deadline = deadline
        self.born = born
        self._answers: list[Answer | None] = [None] * size
        self._left = size
        self._lock = threading.Lock()

    def take(self, place: int, answer: Answer) -> bool:
        """Put an answer into its place; the last one fulfils the future. Return whether it was still waited for."""
        if self.future.done():
            return False
        with self._lock:
            self._answers[place] = answer
            self._left -= 1
            complete = self._left == 0
        if complete:
            with suppress(Exception):  # cancelled or failed meanwhile
                self.future.set_result([found for found in self._answers if found is not None])
        return True

    def fail(self, error: Exception) -> None:
        """Let the future fail, unless it is done."""
        with suppress(Exception):
            self.future.set_exception(error)

    def is_wanted(self, now: float) -> bool:
        """Return whether anybody still waits for it; one whose time is over fails here."""
        if self.deadline is not None and now > self.deadline and not self.future.done():
            self.fail(DeadlineError(TOO_LATE))
        return not self.future.done()


_NO_PIECES = Pieces((), ())


@dataclass(eq=False)
class PendingText:
    """One text under one prompt, and all who wait for it.

    Args:
        key: the prompt's version and the text's fields.
        served: the prompt.
        example: the text.
        born: when it came, on the monotonic clock (seconds).
        waiters: tickets, and the place of this answer in each.
        pieces: its token ids, once there.
        is_cut: whether it was cut to fit.
    """

    key: tuple[Any, ...]
    served: Served
    example: Example
    born: float
    waiters: list[tuple[Ticket, int]] = field(default_factory=list)
    pieces: Pieces = _NO_PIECES
    is_cut: bool = False

    @property
    def rows(self) -> int:
        """Rows of a batch that it takes: one for each prompt that answers."""
        return len(self.served.members)

    @property
    def tokens(self) -> int:
        """Tokens that it takes, at most, about: prompts that share a read of the text take it once."""
        return sum(len(self.pieces) + member.ready.length for member in self.served.members)

    def is_wanted(self, now: float) -> bool:
        """Return whether anybody still waits for it; every ticket whose time is over fails."""
        return any([ticket.is_wanted(now) for ticket, _ in self.waiters])  # noqa: C419  # each is asked

    def answer(self, decision: Decision) -> Answer:
        """Return its answer."""
        return Answer(self.served.name, self.served.version, decision, self.is_cut, self.served.task.has_labels)


class RequestLimits(Options):
    """What one request may hold."""

    body_bytes: int = Field(1_000_000, ge=1, description="bytes of a request's body")
    upload_bytes: int = Field(64_000_000, ge=1, description="bytes of an uploaded prompt, packed and unpacked")
    inputs: int = Field(256, ge=1, description="texts of one request")
    prompts: int = Field(32, ge=1, description="prompts of one request")
    characters: int = Field(20_000, ge=1, description="characters of one text, all its fields together")
    timeout_ms: int = Field(30_000, ge=1, description="how long a request may take, at most")
