"""The backbone's answers to many texts: windows, one turned into token ids while the one before it is computed."""

from __future__ import annotations

import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuecraft.core.errors import BulkError, CuecraftWarning, DataError, StoppedError
from cuecraft.core.storage import write_file
from cuecraft.serving.bulk.reading import Keys, text_number
from cuecraft.serving.bulk.table import DIGITS, NONE_OF_THESE, AnswerBatch
from cuecraft.serving.bulk.texts import Wanted
from cuecraft.serving.registry import AnyShelf, decide_mixed
from cuecraft.task import Decision, Example
from cuecraft.task.rendering import Pieces


@dataclass(frozen=True)
class _Window:
    """Texts that are answered together.

    Args:
        texts: as they were read.
        examples: `[P][N]` the texts as examples of each prompt's task.
        pieces: `[P][N]` their token ids for each prompt; None for a text without tokens.
        cut: `[N, P]` whether each text was cut to fit.
    """

    texts: Sequence[str]
    examples: list[list[Example]]
    pieces: list[list[Pieces | None]]
    cut: NDArray[np.bool_]


@dataclass
class StageSeconds:
    """Seconds of what an answerer has done, by stage."""

    seconds_of_tokens: float = 0.0
    seconds_of_model: float = 0.0


class Answerer:
    """Answers texts with all prompts of a collection.

    Windows are cut off the list of texts from its beginning, and a window that is answered is kept on disk: so what is
    answered together, and with it every bit of every answer, does not depend on where a job was broken off.

    Args:
        shelf: the prompts, over one backbone.
        wanted: how texts become fields.
        size: texts of a window.
        stop: returns whether to stop.
    """

    def __init__(
        self, shelf: AnyShelf[Any], wanted: Wanted, size: int, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._served = shelf.all()
        #: Numbers of the prompts that answer with no labels, in the order of `Answers.values`.
        self.others = [number for number, served in enumerate(self._served) if not served.task.has_labels]
        self._wanted, self._size, self._stop = wanted, size, stop
        self._ahead = ThreadPoolExecutor(1, "cuecraft-tokens")
        self.work = StageSeconds()
        self._has_cut = False

    @property
    def prompts(self) -> list[Any]:
        """The prompts, P of them."""
        return self._served

    def answers(self, texts: Sequence[str], kept: Path, report: Callable[[int, int], None]) -> AnswerBatch:
        """Return the answers to some texts.

        Args:
            texts: the texts.
            kept: windows that are answered are kept as files that begin so, and read again where they are there.
            report: progress callback, called with how many of how many texts are answered.

        Raises:
            StoppedError: asked to stop; what was answered is kept.
            OSError: a window cannot be written.
        """
        parts: list[AnswerBatch] = []
        done = 0
        starts = range(0, len(texts), self._size)
        for number, window in enumerate(self._windows(texts, [self._path(kept, n) for n in range(len(starts))])):
            path = self._path(kept, number)
            if isinstance(window, AnswerBatch):
                parts.append(window)
            else:
                if self._stop():
                    raise StoppedError
                parts.append(self._computed(window))
                none: Keys = np.zeros((0, 2), np.uint64)
                write_file(path, lambda scratch, own=parts[-1], none=none: own.save(scratch, none))  # type: ignore[misc]
            done += len(parts[-1])
            report(done, len(texts))
        return AnswerBatch.joined([self.empty(0), *parts])

    def empty(self, count: int) -> AnswerBatch:
        """Return space for answers to so many texts."""
        return AnswerBatch.empty(count, len(self._served), len(self.others))

    def forget(self, kept: Path) -> None:
        """Remove the windows that were kept under a name."""
        for path in kept.parent.glob(f"{kept.name}.*.window"):
            path.unlink()

    def _path(self, kept: Path, number: int) -> Path:
        return kept.with_name(f"{kept.name}.{number:06d}.window")

    def _windows(self, texts: Sequence[str], paths: Sequence[Path]) -> Iterator[_Window | AnswerBatch]:
        """Yield windows, the next one already in progress; of one that is there its answers."""
        parts = [texts[n * self._size : (n + 1) * self._size] for n in range(len(paths))]
        there = [_there(path, part) for path, part in zip(paths, parts, strict=True)]
        missing = deque(part for part, own in zip(parts, there, strict=True) if own is None)
        coming: Future[_Window] | None = None
        for own in there:
            if own is not None:
                yield own
                continue
            window = coming.result() if coming is not None else self._tokenised(missing[0])
            missing.popleft()
            coming = self._ahead.submit(self._tokenised, missing[0]) if missing else None
            yield window

    def _tokenised(self, texts: Sequence[str]) -> _Window:
        begun = time.perf_counter()
        records = [self._wanted.record(text) for text in texts]
        window = list[list[Example]]()
        pieces, cut = [], np.zeros((len(texts), len(self._served)), bool)
        for number, served in enumerate(self._served):
            renderer = served.members[0].ready.renderer
            examples = [served.example(record) for record in records]
            window.append(examples)
            pairs: list[tuple[Pieces | None, bool]]
            try:
                pairs = list(zip(*renderer.fitted(examples), strict=True))
            except DataError:
                pairs = [_alone(renderer, example) for example in examples]
            pieces.append([own for own, _ in pairs])
            cut[:, number] = [is_cut for _, is_cut in pairs]
        self.work.seconds_of_tokens += time.perf_counter() - begun
        return _Window(texts, window, pieces, cut)

    def _computed(self, window: _Window) -> AnswerBatch:
        begun = time.perf_counter()
        if window.cut.any() and not self._has_cut:
            self._has_cut = True
            warnings.warn(
                "some texts are longer than the model takes, and are cut to fit", CuecraftWarning, stacklevel=2
            )
        found = self.empty(len(window.texts))
        found.texts[:] = [text_number(text) for text in window.texts]
        found.cut[:] = window.cut
        usable = [n for n in range(len(window.texts)) if all(own[n] is not None for own in window.pieces)]
        asked = [(n, p, piece) for n in usable for p, own in enumerate(window.pieces) if (piece := own[n]) is not None]
        rows = [(self._served[p], window.examples[p][n], piece) for n, p, piece in asked]
        for (n, p, _), decision in zip(asked, decide_mixed(rows), strict=True):
            found.labels[n, p] = _number(decision) if self._served[p].task.has_labels else 0
            found.probabilities[n, p] = decision.confidence
            if p in self.others:
                found.values[n, self.others.index(p)] = _written(decision)
        self.work.seconds_of_model += time.perf_counter() - begun
        return found


def _number(decision: Decision) -> int:
    """Return the number of a class."""
    return NONE_OF_THESE if decision.value is None else int(np.argmax([*decision.options.values()]))


def _written(decision: Decision) -> bytes:
    """Return an answer as JSON."""
    found = decision.document()
    found["options"] = {name: round(share, DIGITS) for name, share in found["options"].items()}
    return json.dumps(found, ensure_ascii=False).encode()


def _there(path: Path, texts: Sequence[str]) -> AnswerBatch | None:
    """Return the answers to a window that are there; None for none, or for damaged ones or those to other texts."""
    if not path.is_file():
        return None
    try:
        found = AnswerBatch.load(path)[1]
    except BulkError:
        return None
    return found if found.texts.tolist() == [text_number(text) for text in texts] else None


def _alone(renderer: Any, example: Example) -> tuple[Pieces | None, bool]:
    """Return the token ids of one text, None where it has none, and whether it was cut to fit."""
    try:
        (found,), (is_cut,) = renderer.fitted([example])
    except DataError:
        return None, False
    return found, is_cut
