"""Passes that run at the same time on a CPU.

A pass of a training is short: a few rows with a few tokens each. Two threads within it wait for each other more than
they compute. Two passes with a thread each do not, so the threads of torch are shared out among passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import TypeVar

import torch

from cuecraft.core.environment import own_products_kept

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4  # passes at a time; on more cores each has several threads
_COUNTING = Lock()  # of `_whole`
_whole: list[int] = []  # torch's threads before any were shared, once for each caller that shares them now


def lanes(device: torch.device) -> int:
    """Return how many passes to run at a time: one on anything but a CPU, or with one thread."""
    return min(_MOST, torch.get_num_threads()) if device.type == "cpu" else 1


def at_once(run: Callable[[T], R], items: Sequence[T], count: int) -> Iterator[R]:
    """Yield `run(item)` for each item, in order, `count` of them at a time.

    Threads see the context variables of the caller. What a run raises is raised here, once no other runs.

    Args:
        run: called in a thread of its own where `count` is more than one, with its share of torch's threads.
        items: what it is called with.
        count: runs at a time, at most.
    """
    count = min(count, len(items))  # fewer runs have more threads each
    if count <= 1:
        yield from map(run, items)
        return
    with own_products_kept(), _shared(count) as pool:
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(pool.submit(copy_context().run, _with_gradient, run, item))
            if len(running) == count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _with_gradient(run: Callable[[T], R], item: T) -> R:
    with torch.inference_mode(False), torch.enable_grad():  # both are settings of a thread
        return run(item)


@contextmanager
def _shared(count: int) -> Iterator[ThreadPoolExecutor]:
    """Lend threads that share torch's; they end before the process has all of them back.

    Torch gives a new thread as many as were set last. So several callers at once give back what was there before the
    first of them.
    """
    threads = torch.get_num_threads()
    with _COUNTING:
        _whole.append(_whole[0] if _whole else threads)
    begin = partial(torch.set_num_threads, max(1, threads // count))
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="cuecraft-pass", initializer=begin) as pool:
            yield pool
    finally:
        with _COUNTING:
            torch.set_num_threads(_whole.pop())  # matrix products have one number for the whole process
