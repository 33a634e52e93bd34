"""The supervised contrastive loss, and its objective over batches in which all classes are equally frequent.

    loss_i = - 1 / |P(i)|  sum_{p in P(i)}  log  exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)

`z` are features of unit length, `P(i)` the other texts of the batch with the class of text i, `t` the temperature
(Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2). Of sets of labels `P(i)` are the other texts that share a
label, and each counts by how alike the sets are (Jaccard) in place of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone import AnyBackbone
from cuecraft.core.errors import MethodError
from cuecraft.core.seeding import torch_generator
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import feature_gradients, features_of
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import Labelled
from cuecraft.methods.train.loop import Criterion, Part, Step, side_by_side


def contrastive_losses(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the loss of each text of a batch `[B]`, NaN where no other text has its class.

    Args:
        features: `[B, d]`, of any length but zero.
        labels: `[B]` class numbers, or how alike the answers of any two texts are `[B, B]`, 0 to 1.
        temperature: by which cosines are divided; the smaller, the more the nearest texts of other classes count.
    """
    similarities = _similarities(features) / temperature
    weights = _alike(labels).to(similarities, copy=True).fill_diagonal_(0.0)
    log_shares = similarities.log_softmax(1)  # a text itself has share zero
    kin = weights.sum(1)
    losses = -(log_shares.masked_fill(weights == 0, 0.0) * weights).sum(1) / torch.where(kin > 0, kin, 1.0)
    return losses.masked_fill(kin == 0, torch.nan)


@torch.no_grad()
def nearest_is_alike(features: Tensor, labels: Tensor) -> Tensor:
    """Return for each text of a batch `[B]` how alike the text nearest to it is: of labels, whether it has its class.

    Arguments as for `contrastive_losses`.
    """
    nearest = _similarities(features).argmax(1, keepdim=True)
    return _alike(labels).gather(1, nearest)[:, 0]


def _alike(labels: Tensor) -> Tensor:
    """Return how alike the answers of any two texts are `[B, B]`, given that or class numbers `[B]`."""
    return labels if labels.ndim == 2 else labels[:, None] == labels[None]


def _similarities(features: Tensor) -> Tensor:
    """Return the cosines of texts `[B, B]` (float32 at least), of each with itself minus infinity."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    unit = functional.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T).masked_fill(itself, -torch.inf)


@dataclass(frozen=True)
class Contrast(Criterion):
    """The mean contrastive loss of a batch; as accuracy counts whose nearest text in the batch has their class.

    Args:
        temperature: of the loss.
    """

    temperature: float

    def drawn(self, parts: Sequence[Part], size: int, orders: Sequence[torch.Generator]) -> list[Step]:
        """Return a balanced batch of each part for each step."""
        batches: list[Step] = []
        for number, (part, order) in enumerate(zip(parts, orders, strict=True)):
            drawn = balanced_batches(part.problem.train.golds.strata, size, order)
            batches.append([(number, rows) for rows in drawn])
        return side_by_side(batches)

    def take(
        self, backbone: AnyBackbone, parts: Sequence[tuple[Callable[[], Candidate], Labelled]], trained: list[Tensor]
    ) -> list[Tensor]:
        """Return of each text of each batch its loss, and 1 where its nearest one has its class, `[b, 2]`."""
        return feature_gradients(backbone, parts, trained, self._loss)

    def seen(self, found: Tensor, batch: Labelled) -> Score:
        """Return the mean of what `take` gave."""
        counted = found[found[:, 0].isfinite()].double()
        return Score(*counted.mean(0).tolist())

    @torch.no_grad()
    def at_start(self, part: Part, candidate: Candidate, size: int) -> Score:
        """Return the score of batches that are drawn for this alone."""
        problem = part.problem
        features = features_of(problem.backbone, candidate, problem.train)
        golds, order = problem.train.golds, torch_generator(problem.seed, "first")
        batches = balanced_batches(golds.strata, size, order)
        found = [self._found(features[rows], golds.select(rows).alike)[1] for rows in batches]
        return self.seen(torch.cat(found), problem.train)

    def _loss(self, features: Tensor, batch: Labelled) -> tuple[Tensor, Tensor]:
        """Return the mean loss by the texts' weights, and what `take` gives.

        Raises:
            MethodError: no two texts have one class.
        """
        losses, found = self._found(features, batch.golds.alike)
        paired = losses.isfinite()
        if not bool(paired.any()):
            raise MethodError("the contrastive loss needs two texts of a class at least; give more")
        weights = torch.ones_like(losses) if batch.weights is None else batch.weights.to(losses)
        return (losses * weights)[paired].sum() / weights[paired].sum(), found

    def _found(self, features: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        losses = contrastive_losses(features, alike, self.temperature)
        return losses, torch.stack([losses.detach(), nearest_is_alike(features, alike).to(losses)], dim=1)


def balanced_batches(labels: Sequence[int], size: int, order: torch.Generator) -> list[list[int]]:
    """Return rows of batches that take as many texts of each class, for one pass over as many texts as there are.

    Every class goes round its own texts in random orders, so that texts of a rare class are met more often than others.
    A batch takes two texts of a class at least, and none twice; of a class with fewer texts than its share all of them.

    Args:
        labels: `[N]` class numbers.
        size: texts of a batch, as nearly as the number of classes divides it.
        order: draws the orders.
    """
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    share = max(2, size // len(rows_of))
    rounds = [_Round(rows_of[label], min(share, len(rows_of[label])), order) for label in sorted(rows_of)]
    count = math.ceil(len(labels) / sum(own.share for own in rounds))
    return [[row for own in rounds for row in own.next()] for _ in range(count)]


class _Round:
    """The texts of one class, in one random order after another.

    Args:
        rows: of the texts.
        share: how many are taken at once.
        order: draws the orders.
    """

    def __init__(self, rows: Sequence[int], share: int, order: torch.Generator) -> None:
        self._rows = rows
        self.share = share
        self._order = order
        self._left: list[int] = []

    def next(self) -> list[int]:
        """Return the next texts: those that are left of an order, then others at the front of the next one."""
        taken, self._left = self._left[: self.share], self._left[self.share :]
        if len(taken) < self.share:
            fresh = [self._rows[n] for n in torch.randperm(len(self._rows), generator=self._order).tolist()]
            others = [row for row in fresh if row not in taken]
            added = others[: self.share - len(taken)]
            self._left = [row for row in fresh if row not in added]
            taken = taken + added
        return taken
