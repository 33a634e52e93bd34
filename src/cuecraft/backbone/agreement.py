"""Whether a backbone answers as its model does by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from cuecraft.core.errors import BackboneError

_TOLERANCE = 0.02  # of the greatest number: wide enough for bfloat16, far from a wrong mask or position


def agree(found: Tensor, expected: Tensor, name: str) -> bool:
    """Return whether a new backbone's answers are the model's own: to within what bfloat16 rounds.

    Raises:
        BackboneError: the model's own answers are no numbers.
    """
    finite = expected[expected.isfinite()]  # -inf says of a token that it never comes
    if expected.isnan().any() or not finite.numel():
        raise BackboneError(
            f"{name} answers with NaN or infinity: its weights hold such, or its number type is too narrow; check the "
            "weights, or give dtype float32"
        )
    return torch.allclose(found, expected, atol=_TOLERANCE * float(finite.abs().max()))
