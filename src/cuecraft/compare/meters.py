"""What a run takes: memory at its highest, and the time of answers on texts read fresh."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
BATCH_ROWS, QUERY_ROWS, WARM_UP = 64, 30, 3


@dataclass
class Memory:
    """Peak memory of a block of code, in bytes; None where it cannot be had.

    Args:
        peak: the highest value: resident memory of the process on a CPU, the allocator's on a GPU.
        rise: how far that is above the value before the block.
    """

    peak: int | None = None
    rise: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Measure a block of code; the numbers are there when the block has ended.

    On a CPU this needs Linux. It resets the process's own high-water mark of resident memory (`VmHWM`).
    """
    found = Memory()
    gc.collect()  # what an earlier run left behind in cycles
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _reset_resident() if device.type == "cpu" else None
    yield found
    if before is not None:
        found.peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
        found.rise = found.peak - before


def peak_bytes(run: Callable[[], object]) -> int:
    """Return by how much a call raises this process's resident memory at its highest.

    Raises:
        OSError: not on Linux, or /proc cannot be used.
    """
    with peak_memory(torch.device("cpu")) as memory:
        run()
    if memory.rise is None:
        raise OSError("resident memory can be measured through /proc of Linux only")
    return memory.rise


def _reset_resident() -> int | None:
    """Set the high-water mark to what is resident now, and return that, with freed memory given back first."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, AttributeError):  # no glibc, no Linux, or /proc is read-only
        return None


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


@dataclass(frozen=True)
class Speed:
    """How fast answers come on texts read fresh.

    Args:
        examples_per_second: with all rows given at once.
        rows: how many that were.
        latencies: seconds of each query of one text.
    """

    examples_per_second: float
    rows: int
    latencies: tuple[float, ...]


def answer_speed(answer: Callable[[Sequence[T]], object], rows: Sequence[T]) -> Speed:
    """Time answers: one text at a time after a few that warm up, then many at once.

    Args:
        answer: answers some rows and returns when the answers are there.
        rows: at least one; the first 30 are queried alone, the first 64 together.
    """
    for turn in range(WARM_UP):
        answer([rows[turn % len(rows)]])
    latencies = tuple(_seconds(answer, [row]) for row in rows[:QUERY_ROWS])
    many = rows[:BATCH_ROWS]
    return Speed(len(many) / _seconds(answer, many), len(many), latencies)


def _seconds(answer: Callable[[Sequence[T]], object], rows: Sequence[T]) -> float:
    begun = time.perf_counter()
    answer(rows)
    return time.perf_counter() - begun
