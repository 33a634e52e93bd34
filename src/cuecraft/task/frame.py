"""What stands around the fields of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuecraft.task import Field

if TYPE_CHECKING:
    from cuecraft.task.rendering import Pieces


@dataclass(frozen=True)
class Frame:
    """What stands around the fields of a task, the same for every text; the tuned tokens stand in one of its two sides.

    Args:
        opening: ids before the first field.
        closing: ids after the last field.
        is_first: whether the tuned tokens stand in `opening`.
        at: how many ids of their side stand before the tuned tokens.
        span: what the fields are written as and what stands between them: ids, or a slot of a field.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    is_first: bool
    at: int
    span: tuple[tuple[int, ...] | Field, ...]

    def inner(self, pieces: Pieces) -> tuple[int, ...]:
        """Return a text's own ids: those between opening and closing."""
        ids = pieces.before + pieces.after
        return ids[len(self.opening) : len(ids) - len(self.closing)]
