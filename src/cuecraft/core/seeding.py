"""Random numbers: one generator per purpose, all derived from the run's seed.

A purpose never shares a stream with another, so that drawing a dev set, or showing more of the progress, cannot
change what a search or an initialisation draws.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derived_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on `seed` and on nothing else but the name of the purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one purpose, such as ``"split"``."""
    import numpy as np

    return np.random.default_rng(derived_seed(seed, purpose))


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU torch generator for one purpose, such as ``"init"``."""
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, purpose))
