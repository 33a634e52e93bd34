"""The supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2).

    loss_i = - 1 / |P(i)|  sum_{p in P(i)}  log  exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)

`z` are features of unit length, `P(i)` the other texts of the batch with the class of text i, `t` the temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_losses(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the loss of each text of a batch `[B]`, NaN where no other text has its class.

    Args:
        features: `[B, d]`, of any length but zero.
        labels: `[B]` class numbers.
        temperature: by which cosines are divided; the smaller, the more the nearest texts of other classes count.
    """
    similarities = _similarities(features) / temperature
    same = labels[:, None] == labels[None]
    same.fill_diagonal_(False)
    log_shares = similarities.log_softmax(1)  # a text itself has share zero
    kin = same.sum(1)
    losses = -log_shares.masked_fill(~same, 0.0).sum(1) / kin.clamp_min(1)
    return losses.masked_fill(kin == 0, torch.nan)


@torch.no_grad()
def nearest_is_alike(features: Tensor, labels: Tensor) -> Tensor:
    """Return for each text of a batch `[B]` whether the text nearest to it has its class."""
    return labels[_similarities(features).argmax(1)] == labels


def _similarities(features: Tensor) -> Tensor:
    """Return the cosines of texts `[B, B]` (float32 at least), of each with itself minus infinity."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    unit = functional.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T).masked_fill(itself, -torch.inf)
