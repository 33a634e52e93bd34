"""An engine that asks others: replicas on Ray, another one where one dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuecraft.core import errors
from cuecraft.core.errors import ClosingError, CuecraftError, DeadlineError, QueueFullError, ServeError
from cuecraft.serving.requests import STOPPING, TOO_LATE, Answer, Watcher, check_asked

if TYPE_CHECKING:
    from cuecraft.serving.artifacts import Listing

_PAUSE = 0.05  # seconds before another replica is asked
_DEFAULT_TIMEOUT = 60.0
_UNKNOWN = 5.0  # seconds in which a replica should have learnt of a prompt


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a request, as it crosses from one process to another.

    Args:
        kind: name of the error's class.
        message: what is reported.
        retry_after: seconds.
    """

    kind: str
    message: str
    retry_after: float

    def error(self) -> CuecraftError:
        """Return the error."""
        kind = getattr(errors, self.kind, ServeError)
        return QueueFullError(self.message, self.retry_after) if kind is QueueFullError else kind(self.message)


Reply = list[Answer] | Refusal


class RemoteEngine:
    """Asks the replicas behind a handle; what a service needs of an engine.

    Args:
        engines: a handle of Ray Serve's, whose `answer` returns a `Reply`.
        listing: the prompts.
        watcher: called with answers and refusals.
    """

    def __init__(self, engines: Any, listing: Listing, watcher: Watcher) -> None:
        self._engines = engines
        self._listing = listing
        self._watcher = watcher
        self._waiting = 0
        self._is_open = True
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def shelf(self) -> Listing:
        """The prompts."""
        return self._listing

    @property
    def waiting(self) -> int:
        """Answers that are waited for."""
        return self._waiting

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._is_open

    @property
    def is_alive(self) -> bool:
        """Always: it has no threads, and replicas that die are started again."""
        return True

    def started(self) -> None:
        """Take note of the event loop that runs; what is asked of the replicas is asked from it."""
        self._loop = asyncio.get_running_loop()

    def submit(
        self, texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], timeout: float | None = None
    ) -> Future[list[Answer]]:
        """Ask for answers, once an event loop is known; arguments, order and errors as for `Engine.submit`."""
        check_asked(texts, prompts)
        if not self._is_open:
            raise ClosingError(STOPPING)
        for name in prompts:
            listed = self._listing.get(name)
            for text in texts:
                listed.example(text)
        future: Future[list[Answer]] = Future()
        assert self._loop is not None
        asking = self._ask(future, texts, prompts, timeout or _DEFAULT_TIMEOUT)
        task = asyncio.run_coroutine_threadsafe(asking, self._loop)
        future.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)
        return future

    def close(self, drain: float = 0.0) -> None:
        """Take no more requests; what is in progress goes on for `drain` seconds at most."""
        self._is_open = False
        until = time.monotonic() + drain
        while self._waiting and time.monotonic() < until:
            time.sleep(_PAUSE)

    async def _ask(
        self, future: Future[list[Answer]], texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], timeout: float
    ) -> None:
        begun, size = time.monotonic(), len(texts) * len(prompts)
        self._waiting += size
        reply: Reply | Exception
        try:
            reply = await self._reply(texts, prompts, begun + timeout)
        except Exception as error:  # the waiting request has to get it, whatever it is
            reply = error
        finally:
            self._waiting -= size
        with suppress(Exception):  # cancelled meanwhile
            if isinstance(reply, list):
                for answer in reply:
                    self._watcher.answered(answer.prompt, time.monotonic() - begun, "computed")
                future.set_result(reply)
            else:
                reason = "full" if isinstance(reply, Refusal) and reply.kind == "QueueFullError" else "invalid"
                self._watcher.refused(reason, size)
                future.set_exception(reply.error() if isinstance(reply, Refusal) else reply)

    async def _reply(self, texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], until: float) -> Reply:
        """Return what a replica replies; where it dies, another one's reply."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, RayServeException

        patience = time.monotonic() + _UNKNOWN
        while (left := until - time.monotonic()) > 0:
            try:
                reply: Reply = await asyncio.wait_for(self._engines.answer.remote(texts, prompts, left), left)
            except BackPressureError as error:
                raise QueueFullError("too much is waited for already; try again later", 1.0) from error
            except TimeoutError:
                break
            except (RayActorError, RayServeException):
                await asyncio.sleep(_PAUSE)
            else:
                # One that does not know yet what was uploaded elsewhere will know in a moment.
                is_unknown = isinstance(reply, Refusal) and reply.kind == "UnknownPromptError"
                if not is_unknown or time.monotonic() > patience:
                    return reply
                await asyncio.sleep(_PAUSE)
        raise DeadlineError(TOO_LATE)
