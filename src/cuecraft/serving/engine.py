"""The engine: texts come in one by one, each with prompts of its own; answers are made in batches over one backbone.

Two threads work on a queue. One turns texts into token ids; the other takes as many as fit a budget of tokens, or
what is there when the oldest has waited long enough, and makes one batch of them. Rows of a batch have different
prompts, of different kinds and tasks. The same text under the same prompt, asked for by several, is answered once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from pydantic import Field

from cuecraft.core.errors import ClosingError, QueueFullError, ServeError
from cuecraft.core.options import Options
from cuecraft.serving.registry import AnyShelf, decide_mixed
from cuecraft.serving.requests import STOPPING, Answer, PendingText, Ticket, Watcher, check_asked

_TOGETHER = 256  # texts that are turned into token ids at once
_RATE_MEMORY = 0.2  # weight of the newest batch in the rate that refusals use
_HASTE = 0.8  # of the time that a request has: what is expected to take longer is refused, for rates sway


class EngineOptions(Options):
    """How an engine makes batches, and what it keeps."""

    batch_tokens: int | None = Field(None, ge=1, description="tokens of one batch; none for what the device is best at")
    max_wait_ms: float = Field(2.0, ge=0, description="how long a text waits for others to share a batch with")
    max_queue: int = Field(4096, ge=1, description="answers that may be waited for at once; more are refused")
    cache_answers: int = Field(0, ge=0, description="answers that are kept for the same text; 0 for none")


class Engine:
    """Answers texts with the prompts of a collection.

    Args:
        shelf: the prompts, over one backbone; may change at any time.
        options: how batches are made.
        watcher: called with what happens.
    """

    def __init__(
        self, shelf: AnyShelf[Any], options: EngineOptions | None = None, watcher: Watcher | None = None
    ) -> None:
        self._shelf = shelf
        self.options = options or EngineOptions()
        self.watcher = watcher or Watcher()
        self.rate = 0.0  # answers a second, lately, while there was something to answer
        self._batch_seconds = 0.0  # that a batch took, lately
        self._ended = 0.0  # when the last batch was done
        self._changed = threading.Condition()
        self._fresh: deque[PendingText] = deque()
        self._ready: deque[PendingText] = deque()
        self._ready_tokens = 0
        self._pending: dict[tuple[object, ...], PendingText] = {}
        self._cache: OrderedDict[tuple[object, ...], Answer] = OrderedDict()
        self._waiting = 0
        self._is_open, self._is_running = True, True
        works = (("tokens", self._tokenise), ("model", self._compute))
        self._threads = [threading.Thread(target=work, name=f"cuecraft-{name}", daemon=True) for name, work in works]
        for thread in self._threads:
            thread.start()

    @property
    def shelf(self) -> AnyShelf[Any]:
        """The prompts that it answers with."""
        return self._shelf

    @property
    def waiting(self) -> int:
        """Answers that are waited for."""
        return self._waiting

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._is_open and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether its threads live, or have ended in order."""
        return not self._is_running or all(thread.is_alive() for thread in self._threads)

    def started(self) -> None:
        """Take no note of an event loop: threads of its own work."""

    def submit(
        self, texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], timeout: float | None = None
    ) -> Future[list[Answer]]:
        """Ask for the answers of some prompts to some texts.

        Args:
            texts: fields of each text, and the options that it brings, a tuple under "choices".
            prompts: ids.
            timeout: seconds after which the answer is of no use; None for no limit.

        Returns:
            A future of the answers, all prompts' to the first text, then to the second, and so on. It raises what is
            wrong with a text, or DeadlineError. Cancelling it takes back what is not yet being computed.

        Raises:
            ServeError: nothing was asked for, or too much at once.
            UnknownPromptError: there is no such prompt.
            ClosingError: the engine is closing.
            QueueFullError: too much is waited for already.
            TemplateError: a text lacks a field that a prompt's template names.
        """
        check_asked(texts, prompts)
        served = [self.shelf.get(name) for name in prompts]
        now = time.monotonic()
        pairs = [(prompt, prompt.example(text)) for text in texts for prompt in served]
        wanted = [
            PendingText((own.version, own.name, example.options, *sorted(example.fields.items())), own, example, now)
            for own, example in pairs
        ]
        ticket = Ticket(len(wanted), None if timeout is None else now + timeout, now)
        with self._changed:
            self._check_room(len(wanted), timeout)
            known = [(place, job, self._kept(job)) for place, job in enumerate(wanted)]
            for place, job, kept in known:
                if kept is None:
                    self._enqueue(job, ticket, place)
            self._changed.notify_all()
        ticket.future.add_done_callback(lambda future: self._take_back(ticket) if future.cancelled() else None)
        for place, job, kept in known:
            if kept is not None:
                self.watcher.answered(job.served.name, time.monotonic() - now, "cache")
                ticket.take(place, kept)
        return ticket.future

    def ask(
        self, texts: Sequence[Mapping[str, Any]], prompts: Sequence[str], timeout: float | None = None
    ) -> list[Answer]:
        """Return the answers, once they are there; arguments, order and errors as for `submit`."""
        return self.submit(texts, prompts, timeout).result()

    def close(self, drain: float = 0.0) -> None:
        """Take no more requests; wait up to `drain` seconds for what is in progress, and let the rest fail."""
        with self._changed:
            self._is_open = False
            self._changed.wait_for(lambda: not self._pending, drain)
            self._is_running = False
            left = list(self._pending.values())
            self._changed.notify_all()
        self._fail(left, ClosingError(STOPPING), "closing")
        for thread in self._threads:
            thread.join()

    def _check_room(self, size: int, timeout: float | None) -> None:
        if not self.is_open:
            self.watcher.refused("closing", size)
            raise ClosingError(STOPPING)
        if size > self.options.max_queue:
            raise ServeError(
                f"{size} answers were asked for at once, and {self.options.max_queue} may be waited for; ask for less"
            )
        # What could not be answered in time is refused at once, and costs no other. All that waits comes first,
        # and then nothing is answered before the whole batch is that it is in.
        seconds = (self._waiting + size) / self.rate if self.rate else 0.0
        seconds += self._batch_seconds if self._waiting else 0.0
        is_late = timeout is not None and seconds > _HASTE * timeout
        if self._waiting + size > self.options.max_queue or is_late:
            self.watcher.refused("full", size)
            raise QueueFullError(
                f"{self._waiting} answers are waited for already, so this would come too late; try again later",
                seconds or 1.0,
            )

    def _kept(self, job: PendingText) -> Answer | None:
        found = self._cache.get(job.key)
        if found is not None:
            self._cache.move_to_end(job.key)
        return found

    def _enqueue(self, job: PendingText, ticket: Ticket, place: int) -> None:
        self._waiting += 1
        under_way = self._pending.get(job.key)
        if under_way is not None:
            under_way.waiters.append((ticket, place))
            return
        job.waiters.append((ticket, place))
        self._pending[job.key] = job
        self._fresh.append(job)

    def _tokenise(self) -> None:
        """Turn texts into token ids, until the engine is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or not self._is_running)
                if not self._is_running:
                    return
                jobs = [self._fresh.popleft() for _ in range(min(len(self._fresh), _TOGETHER))]
            by_prompt: dict[int, list[PendingText]] = {}
            for job in jobs:
                by_prompt.setdefault(id(job.served), []).append(job)
            rendered = [job for own in by_prompt.values() for job in self._rendered(own)]
            with self._changed:
                self._ready.extend(rendered)
                self._ready_tokens += sum(job.tokens for job in rendered)
                self._changed.notify_all()

    def _rendered(self, jobs: Sequence[PendingText]) -> list[PendingText]:
        """Give jobs of one prompt their token ids; those that cannot have any fail."""
        renderer = jobs[0].served.members[0].ready.renderer
        try:
            found = renderer.fitted([job.example for job in jobs])
        except Exception as error:  # whatever is wrong with one text must not take the others, or this thread, with it
            if len(jobs) > 1:
                return [done for job in jobs for done in self._rendered([job])]
            self._fail(jobs, error, "invalid")
            return []
        for job, pieces, is_cut in zip(jobs, *found, strict=True):
            job.pieces, job.is_cut = pieces, is_cut
        return list(jobs)

    def _compute(self) -> None:
        """Answer batches, until the engine is closed."""
        while True:
            jobs = self._next_batch()
            if jobs is None:
                return
            wanted = self._still_wanted(jobs)
            if wanted:
                self._answer(wanted)

    def _still_wanted(self, jobs: Sequence[PendingText]) -> list[PendingText]:
        """Leave out jobs that no request waits for any more, or in vain."""
        now = time.monotonic()
        wanted = []
        with self._changed:  # or somebody could begin to wait for one that is just left out
            for job in jobs:
                if job.is_wanted(now):
                    wanted.append(job)
                else:
                    late = [ticket for ticket, _ in self._taken_out(job) if not ticket.future.cancelled()]
                    if late:
                        self.watcher.refused("deadline", len(late))
        return wanted

    def _next_batch(self) -> list[PendingText] | None:
        """Return the jobs of the next batch, once it is full or the oldest has waited long enough; None at the end."""
        budget = self.options.batch_tokens or self.shelf.backbone.budget.tokens
        with self._changed:
            self._changed.wait_for(lambda: self._ready or not self._is_running)
            if not self._is_running:
                return None
            until = self._ready[0].born + self.options.max_wait_ms / 1000
            while self._is_open and self._ready_tokens < budget:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            jobs = [self._ready.popleft()]
            used = jobs[0].tokens
            while self._ready and used + self._ready[0].tokens <= budget:
                used += self._ready[0].tokens
                jobs.append(self._ready.popleft())
            self._ready_tokens -= used
            return jobs

    def _answer(self, jobs: Sequence[PendingText]) -> None:
        """Make one batch of jobs and deliver its answers; where it fails, each job is tried alone."""
        begun = time.monotonic()
        try:
            found = decide_mixed([(job.served, job.example, job.pieces) for job in jobs])
            answers = [job.answer(own) for job, own in zip(jobs, found, strict=True)]
        except Exception as error:  # whatever is wrong with one row must not take the others, or this thread, with it
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job])
            else:
                self._fail(jobs, error, "invalid")
            return
        seconds = time.monotonic() - begun
        texts = len({(job.pieces.before, job.pieces.after) for job in jobs})
        self.watcher.batched(sum(job.rows for job in jobs), texts, sum(job.tokens for job in jobs), seconds)
        self._note_rate(jobs, seconds)
        for job, answer in zip(jobs, answers, strict=True):
            self._deliver(job, answer)

    def _note_rate(self, jobs: Sequence[PendingText], seconds: float) -> None:
        """Take note of how fast answers are made: from when there was something to do, not from when it was begun."""
        now = time.monotonic()
        fresh = len(jobs) / max(now - max(self._ended, min(job.born for job in jobs)), 1e-6)
        new = _RATE_MEMORY if self.rate else 1.0
        self.rate += new * (fresh - self.rate)
        self._batch_seconds += new * (seconds - self._batch_seconds)
        self._ended = now

    def _deliver(self, job: PendingText, answer: Answer) -> None:
        waiters = self._taken_out(job)
        if self.options.cache_answers:
            with self._changed:
                self._cache[job.key] = answer
                while len(self._cache) > self.options.cache_answers:
                    self._cache.popitem(last=False)
        now = time.monotonic()
        source = "computed"
        for ticket, place in waiters:
            if ticket.take(place, answer):
                self.watcher.answered(job.served.name, now - ticket.born, source)
                source = "shared"

    def _fail(self, jobs: Sequence[PendingText], error: Exception, reason: str) -> None:
        for job in jobs:
            waiters = self._taken_out(job)
            if waiters:
                self.watcher.refused(reason, len(waiters))
            for ticket, _ in waiters:
                ticket.fail(error)

    def _take_back(self, ticket: Ticket) -> None:
        """Give back the capacity of a request that was cancelled; what no other request waits for is not computed."""
        with self._changed:
            for job in list(self._pending.values()):
                others = [waiter for waiter in job.waiters if waiter[0] is not ticket]
                self._waiting -= len(job.waiters) - len(others)
                job.waiters = others

    def _taken_out(self, job: PendingText) -> list[tuple[Ticket, int]]:
        """Take a job off the queue; return who waits for it. From here on the same text is a job of its own."""
        with self._changed:
            if self._pending.get(job.key) is job:
                del self._pending[job.key]
            waiters, job.waiters = job.waiters, []
            self._waiting -= len(waiters)
            if not self._pending:
                self._changed.notify_all()
        return waiters
