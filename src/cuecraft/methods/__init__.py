"""Methods: what all of them meet, and the registry. Trained ones in `train`, words in `search`, `auto` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.methods.in_context import ZeroShot
    from cuecraft.methods.registry import METHODS, make_method
    from cuecraft.methods.train.deep import DeepCueTuning, Hybrid
    from cuecraft.methods.train.soft import PromptTuning

__all__ = ["METHODS", "DeepCueTuning", "Hybrid", "PromptTuning", "ZeroShot", "make_method"]

_HOMES = {
    "train.deep": (
        "DeepCueTuning",
        "Hybrid",
    ),
    "train.soft": ("PromptTuning",),
    "registry": (
        "METHODS",
        "make_method",
    ),
    "in_context": ("ZeroShot",),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
