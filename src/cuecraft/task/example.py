"""Examples: one text each, with its right answer where that is known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One text to answer: its fields and, where known, its right answer and its weight in a training.

    Args:
        fields: texts by name.
        gold: the right answer, as the task's answer space has it (`AnswerSpace.gold`); None for none.
        weight: in a training; None for 1.
        options: that the text brings; none where all texts share theirs.
    """

    fields: Mapping[str, str]
    gold: Hashable = None
    weight: float | None = None
    options: tuple[str, ...] = ()
