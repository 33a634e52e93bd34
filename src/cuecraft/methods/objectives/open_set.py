"""One of some classes is right, or none: cross-entropy, flat answers to texts of none, and a least confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration, calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.core.errors import MethodError
from cuecraft.methods.objectives.base import Objective
from cuecraft.task.answers import Gold
from cuecraft.task.answers.base import Values
from cuecraft.task.answers.open_set import OpenSet


class OpenSetObjective(Objective):
    """Cross-entropy of the right class; of a text of none, how far its answers are from equally likely ones.

    The divergence from the uniform answer is the loss of outlier exposure (Hendrycks et al., ICLR 2019, arXiv
    1812.04606). Calibrations and class heads are fitted to texts of a class.
    """

    answers: OpenSet

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the losses."""
        classes, is_out = self._classes(values, golds)
        classes = classes.clamp(max=values.shape[-1] - 1).expand(values.shape[:-1])
        right = functional.cross_entropy(values.flatten(0, -2), classes.flatten(), reduction="none")
        flat = -values.log_softmax(-1).mean(-1) - math.log(values.shape[-1])
        return torch.where(is_out, flat, right.view(values.shape[:-1]))

    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return 1 where the answer is right, the class or none, else 0."""
        # As decisions have it: probabilities and the least one of NumPy, so that ties fall alike.
        chosen = self.answers.chosen(self.answers.probabilities(values.detach().double().cpu().numpy()))
        return torch.from_numpy((chosen == np.array(golds)).astype(float)).to(values.device)

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return one offset for each class and one scale."""
        rows, classes, own = self._of_classes(values, golds, weights)
        return calibration.fitted(values[rows], classes, weights=own) if rows else self.plain()

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a temperature."""
        rows, classes, own = self._of_classes(values, golds, weights)
        return calibration.tempered(values[rows], classes, weights=own) if rows else self.plain()

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return the head of a multinomial logistic regression."""
        rows, classes, weights = self._of_classes(features, golds, fit.weights)
        if not rows:
            raise MethodError("no training example is of a class, so no class head can be fitted")
        return calibration.fitted_head(features[rows], classes, self.answers.size, replace(fit, weights=weights))

    def alike(self, golds: Sequence[Gold]) -> Tensor:
        """Return 1 where two texts have one class, or both none `[B, B]`, else 0."""
        numbers = torch.tensor(self.answers.strata(golds))
        return (numbers[:, None] == numbers[None]).float()

    def decided(self, values: Tensor, golds: Sequence[Gold]) -> OpenSet:
        """Return the classes with a least confidence fitted to right answers of held-out values `[B, C]`."""
        probabilities = self.answers.probabilities(values.double().cpu().numpy())
        least = fitted_least(probabilities, np.array(golds), self.answers.keep)
        return replace(self.answers, least=least)

    def _classes(self, values: Tensor, golds: Sequence[Gold]) -> tuple[Tensor, Tensor]:
        """Return the class numbers `[B]`, C for none, and where it is none."""
        classes = torch.tensor(self.answers.strata(golds), dtype=torch.long, device=values.device)
        return classes, classes == self.answers.size

    def _of_classes(
        self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None
    ) -> tuple[list[int], Tensor, Tensor | None]:
        """Return the rows of texts of a class, their class numbers and their weights, where there are any."""
        classes, is_out = self._classes(values, golds)
        rows = (~is_out).nonzero()[:, 0].tolist()
        return rows, classes[~is_out], None if weights is None else weights[rows]


def fitted_least(probabilities: Values, golds: np.ndarray, keep: float) -> float:
    """Return the least confidence with which a class is answered.

    Where texts of no class are known it maximises the mean of the accuracy on texts of a class and the recall of those
    of none, so that how many there are of each does not matter; of several it is the least. Otherwise it is the one
    that leaves a share `keep` of the texts answered.

    Args:
        probabilities: `[B, C]` of held-out texts.
        golds: `[B]` their class numbers, C for none.
        keep: that share.
    """
    confidences, is_out = probabilities.max(-1), golds == probabilities.shape[-1]
    if not is_out.any() or is_out.all():
        return 0.0 if is_out.all() else float(np.quantile(confidences, 1 - keep, method="lower"))
    right = (probabilities.argmax(-1) == golds) & ~is_out
    known = np.unique(confidences)
    tried = [0.0, *((known[1:] + known[:-1]) / 2).tolist(), float(np.nextafter(known[-1], np.inf))]
    kept = [
        (right & (confidences >= least)).sum() / (~is_out).sum() + (is_out & (confidences < least)).sum() / is_out.sum()
        for least in tried
    ]
    return float(tried[int(np.argmax(kept))])
