"""What the commands were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cuecraft.checkpoints import Keeping
from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.task.chat import ChatChoice


@dataclass(frozen=True)
class TuneRequest:
    """What `cuecraft tune` was asked for; see its help for each."""

    train: str
    dev: str | None
    test: str | None
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    method: str
    method_options: Mapping[str, Any]
    vocab_from: Path | None
    template: str | None
    label_words: Mapping[str, Sequence[str]] | Literal["auto"] | None
    shots: int | None
    first: int | None
    head: str | None
    max_tokens: int | None
    seed: int
    time_limit: float | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Keeping | None
    out: Path
    seeds: tuple[int, ...] | None
    unlabeled: bool
    classes: tuple[str, ...] | None
    prior: tuple[str, ...]
    stop: Callable[[], bool] = lambda: False  # whether to stop, of what has no checkpoints
    reading: Reading = AS_USUAL
    chat: ChatChoice | None = None


@dataclass(frozen=True)
class WordsRequest:
    """What `cuecraft words` was asked for; see its help for each."""

    train: str
    dev: str | None
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    options: Mapping[str, Any]
    template: str | None
    label_words: Mapping[str, Sequence[str]] | None
    shots: int | None
    head: str | None
    seed: int
    where: Mapping[str, Any]
    reading: Reading = AS_USUAL
    chat: ChatChoice | None = None


@dataclass(frozen=True)
class MultitaskRequest:
    """What `cuecraft multitask` was asked for; see its help for each."""

    tasks: Mapping[str, str]
    dev: Mapping[str, str]
    test: Mapping[str, str]
    test_size: int | None
    text_columns: tuple[str, ...]
    label_column: str
    add_to: Path | None
    model: str | None
    options: Mapping[str, Any]
    head: str | None
    seed: int | None
    device: str
    dtype: str
    local_files_only: bool
    checkpoints: Keeping | None
    out: Path
