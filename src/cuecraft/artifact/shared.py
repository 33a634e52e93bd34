"""One tensor that the prompts of several tasks share, and each task's small part of it.

Multitask prompt tuning (Wang et al., ICLR 2023, arXiv 2303.02861, section 3.1): a task's prompt is the shared one times
a low-rank matrix of the task's own. Here the matrix is one plus a product of low rank, and an offset that is the same
at each position is added, so that a part of zeros is the shared prompt itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TaskPart:
    """What is a task's own.

    Args:
        left: `[..., S, r]`.
        right: `[..., r, w]`.
        offset: `[..., 1, w]`.
    """

    left: Tensor
    right: Tensor
    offset: Tensor

    def of(self, shared: Tensor) -> Tensor:
        """Return the task's tensor ``shared * (1 + left @ right) + offset`` `[..., S, w]`."""
        return shared * (1 + self.left @ self.right) + self.offset

    def tensors(self) -> dict[str, Tensor]:
        """Return the part by name, as an artifact stores it."""
        return {"part.left": self.left, "part.right": self.right, "part.offset": self.offset}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TaskPart:
        """Return the part that an artifact holds."""
        return cls(tensors["part.left"], tensors["part.right"], tensors["part.offset"])


@dataclass(frozen=True, eq=False)
class Sharing:
    """How a prompt's tensor comes about from a shared one.

    Args:
        shared: `[..., S, w]`, the same for several tasks.
        part: the task's own.
        sha256: of the file that holds `shared`.
    """

    shared: Tensor
    part: TaskPart
    sha256: str


def shared_file(shared: Tensor) -> tuple[bytes, str]:
    """Return the file that holds a shared tensor, and its SHA-256 (hex)."""
    content = save({"shared": shared.detach().cpu().contiguous()})
    return content, hashlib.sha256(content).hexdigest()
