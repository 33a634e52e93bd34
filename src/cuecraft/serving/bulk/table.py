"""Answers that are known, by key: in memory as sorted arrays, on disk next to the shards that they were made for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cuecraft.core.errors import BulkError, named
from cuecraft.serving.bulk.reading import Keys

MODEL, STUDENT = 0, 1  # who answered
NO_ANSWER = -1  # in place of a label: the text has no tokens


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Raise BulkError where a file of a job's state turns out damaged while it is read."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BulkError(f"{path}: is damaged ({error}); begin the job again in another {named('out')}") from None


@dataclass(frozen=True)
class Answers:
    """Answers of P prompts to K texts.

    Args:
        labels: `[K, P]` the number of the likeliest class; `NO_ANSWER` where there is none.
        probabilities: `[K, P]` its probability.
        cut: `[K, P]` whether the text was cut at its end to fit.
        makers: `[K]` who answered: `MODEL` or `STUDENT`; a student reads whole texts.
        texts: `[K]` 63 bits that stand for the text that was answered.
    """

    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32]
    cut: NDArray[np.bool_]
    makers: NDArray[np.uint8]
    texts: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int, prompts: int) -> Answers:
        """Return space for answers, none of them there."""
        return cls(
            np.full((count, prompts), NO_ANSWER, np.int16),
            np.zeros((count, prompts), np.float32),
            np.zeros((count, prompts), np.bool_),
            np.zeros(count, np.uint8),
            np.zeros(count, np.int64),
        )

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Answers:
        """Return some of them."""
        return Answers(*(getattr(self, own.name)[rows] for own in fields(self)))

    def put(self, rows: NDArray[np.int64], others: Answers) -> None:
        """Set some of them."""
        for own in fields(self):
            getattr(self, own.name)[rows] = getattr(others, own.name)

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """Return several as one."""
        return Answers(*(np.concatenate([getattr(part, own.name) for part in parts]) for own in fields(Answers)))

    def save(self, path: Path, keys: Keys) -> None:
        """Write them with their keys `[K, 2]`; raises OSError where that cannot be done."""
        own = {name.name: np.ascontiguousarray(getattr(self, name.name)) for name in fields(self)}
        path.write_bytes(save(own | {"keys": np.ascontiguousarray(keys)}))  # safetensors' own writing is no OSError

    @classmethod
    def load(cls, path: Path) -> tuple[Keys, Answers]:
        """Return keys `[K, 2]` and their answers; raises BulkError where they are damaged."""
        with undamaged(path):
            found = load(path.read_bytes())
            keys = found.pop("keys")
            return keys, cls(**found)


class AnswerTable:
    """Answers by key, so many at most: those that came first are dropped first, all of one shard at once.

    What it holds after some shards depends on these shards and their order alone.

    Args:
        most: answers that are kept.
        prompts: that answer, P.
    """

    def __init__(self, most: int, prompts: int) -> None:
        self._most = most
        self._keys = np.zeros((0, 2), np.uint64)
        self._answers = Answers.empty(0, prompts)
        self._batch = np.zeros(0, np.int64)  # which shard each came from
        self._batches: deque[tuple[int, str, int]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], Answers]:
        """Return which keys `[K, 2]` are known `[K]`, and the answers of those that are."""
        if not len(self._keys) or not len(keys):
            return np.zeros(len(keys), bool), self._answers.at(np.zeros(0, np.int64))
        at = np.minimum(np.searchsorted(self._keys[:, 0], keys[:, 0]), len(self._keys) - 1)
        known = (self._keys[at] == keys).all(1)
        return known, self._answers.at(at[known])

    def add(self, name: str, keys: Keys, answers: Answers) -> list[str]:
        """Take the answers of a shard; return the names of shards whose answers were dropped for them."""
        order = np.argsort(keys[:, 0], kind="stable")
        keys, answers = keys[order], answers.at(order)
        at = np.searchsorted(self._keys[:, 0], keys[:, 0])
        self._keys = np.insert(self._keys, at, keys, axis=0)
        merged = (
            np.insert(getattr(self._answers, own.name), at, getattr(answers, own.name), axis=0)
            for own in fields(Answers)
        )
        self._answers = Answers(*merged)
        self._batch = np.insert(self._batch, at, self._count)
        self._batches.append((self._count, name, len(keys)))
        self._count += 1
        return self._shrunk()

    def drop(self, maker: int) -> None:
        """Forget what somebody answered."""
        self._keep(self._answers.makers != maker)

    def _shrunk(self) -> list[str]:
        total = sum(size for _, _, size in self._batches)
        dropped = []
        while total > self._most and len(self._batches) > 1:
            _, name, size = self._batches.popleft()
            dropped.append(name)
            total -= size
        if dropped:
            self._keep(self._batch >= self._batches[0][0])
        return dropped

    def _keep(self, chosen: NDArray[np.bool_]) -> None:
        self._keys, self._batch = self._keys[chosen], self._batch[chosen]
        self._answers = self._answers.at(chosen)
