"""What `cuecraft advise` is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.task.chat import ChatChoice


@dataclass(frozen=True)
class AdviseRequest:
    """What `cuecraft advise` was asked for; see its help for each."""

    data: str
    model: str
    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    template: str | None = None
    chat: ChatChoice | None = None
    label_words: Mapping[str, Sequence[str]] | None = None
    head: str | None = None
    max_tokens: int | None = None
    seed: int = 0
    time_limit: float = 60.0
    device: str = "auto"
    dtype: str = "auto"
    local_files_only: bool = False
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_key_env: str | None = None
    labelled_out: Path | None = None
    reading: Reading = AS_USUAL
