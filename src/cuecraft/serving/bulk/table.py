"""Answers that are known, by key: in memory as sorted arrays, on disk next to the shards that they were made for."""

from __future__ import annotations

import json
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
DIGITS = 6  # of a probability
NO_ANSWER = -1  # in place of a label: the text has no tokens
NONE_OF_THESE = -2  # in place of a label: it is none of the classes


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Raise BulkError where a file of a job's state turns out damaged while it is read."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BulkError(f"{path}: is damaged ({error}); begin the job again in another {named('out')}") from None


@dataclass(frozen=True)
class AnswerBatch:
    """Answers of P prompts to K texts.

    Args:
        labels: `[K, P]` the number of the likeliest class, 0 where answers are no labels; `NO_ANSWER` where there is
            none, `NONE_OF_THESE` where it is no class.
        probabilities: `[K, P]` its probability.
        cut: `[K, P]` whether the text was cut at its end to fit.
        makers: `[K]` who answered: `MODEL` or `STUDENT`; a student reads whole texts.
        texts: `[K]` 63 bits that stand for the text that was answered.
        values: `[K, V]` answers of the V prompts that answer with something else than labels, JSON in UTF-8.
    """

    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32]
    cut: NDArray[np.bool_]
    makers: NDArray[np.uint8]
    texts: NDArray[np.int64]
    values: NDArray[np.object_]

    @classmethod
    def empty(cls, count: int, prompts: int, others: int = 0) -> AnswerBatch:
        """Return space for answers, none of them there; `others` of the prompts answer with no labels."""
        return cls(
            np.full((count, prompts), NO_ANSWER, np.int16),
            np.zeros((count, prompts), np.float32),
            np.zeros((count, prompts), np.bool_),
            np.zeros(count, np.uint8),
            np.zeros(count, np.int64),
            np.full((count, others), b"", object),
        )

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> AnswerBatch:
        """Return some of them."""
        return AnswerBatch(*(getattr(self, own.name)[rows] for own in fields(self)))

    def agree(self, row: int, others: AnswerBatch, other: int) -> bool:
        """Return whether all prompts answer alike to two texts, whatever they are sure of."""
        pairs = zip(self.values[row], others.values[other], strict=True)
        same = all(one == two or json.loads(one)["value"] == json.loads(two)["value"] for one, two in pairs)
        return same and bool((self.labels[row] == others.labels[other]).all())

    def put(self, rows: NDArray[np.int64], others: AnswerBatch) -> None:
        """Set some of them."""
        for own in fields(self):
            getattr(self, own.name)[rows] = getattr(others, own.name)

    @staticmethod
    def joined(parts: Sequence[AnswerBatch]) -> AnswerBatch:
        """Return several as one."""
        return AnswerBatch(
            *(np.concatenate([getattr(part, own.name) for part in parts]) for own in fields(AnswerBatch))
        )

    def save(self, path: Path, keys: Keys) -> None:
        """Write them with their keys `[K, 2]`; raises OSError where that cannot be done."""
        names = [own.name for own in fields(self) if own.name != "values"]
        own = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        if self.values.shape[1]:
            own["lengths"] = np.array([[len(value) for value in row] for row in self.values], np.int64)
            own["values"] = np.frombuffer(b"".join(self.values.ravel()), np.uint8)
        path.write_bytes(save(own | {"keys": np.ascontiguousarray(keys)}))  # safetensors' own writing is no OSError

    @classmethod
    def load(cls, path: Path) -> tuple[Keys, AnswerBatch]:
        """Return keys `[K, 2]` and their answers; raises BulkError where they are damaged."""
        with undamaged(path):
            found = load(path.read_bytes())
            keys = found.pop("keys")
            lengths = found.pop("lengths", np.zeros((len(found["texts"]), 0), np.int64))
            written = found.pop("values", np.zeros(0, np.uint8)).tobytes()
            ends = lengths.cumsum().reshape(lengths.shape)
            values = np.full(lengths.shape, b"", object)
            for at, end in np.ndenumerate(ends):
                values[at] = written[end - lengths[at] : end]
            return keys, cls(**found, values=values)


class AnswerTable:
    """Answers by key, so many at most: those that came first are dropped first, all of one shard at once.

    What it holds after some shards depends on these shards and their order alone.

    Args:
        most: answers that are kept.
        prompts: that answer, P.
        others: of them, those that answer with no labels.
    """

    def __init__(self, most: int, prompts: int, others: int = 0) -> None:
        self._most = most
        self._keys = np.zeros((0, 2), np.uint64)
        self._answers = AnswerBatch.empty(0, prompts, others)
        self._batch = np.zeros(0, np.int64)  # which shard each came from
        self._batches: deque[tuple[int, str, int]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], AnswerBatch]:
        """Return which keys `[K, 2]` are known `[K]`, and the answers of those that are."""
        if not len(self._keys) or not len(keys):
            return np.zeros(len(keys), bool), self._answers.at(np.zeros(0, np.int64))
        at = np.minimum(np.searchsorted(self._keys[:, 0], keys[:, 0]), len(self._keys) - 1)
        known = (self._keys[at] == keys).all(1)
        return known, self._answers.at(at[known])

    def add(self, name: str, keys: Keys, answers: AnswerBatch) -> list[str]:
        """Take the answers of a shard; return the names of shards whose answers were dropped for them."""
        order = np.argsort(keys[:, 0], kind="stable")
        keys, answers = keys[order], answers.at(order)
        at = np.searchsorted(self._keys[:, 0], keys[:, 0])
        self._keys = np.insert(self._keys, at, keys, axis=0)
        merged = (
            np.insert(getattr(self._answers, own.name), at, getattr(answers, own.name), axis=0)
            for own in fields(AnswerBatch)
        )
        self._answers = AnswerBatch(*merged)
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
