"""One option for each text is right: cross-entropy and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration, calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.methods.objectives.base import Objective
from cuecraft.task.answers import Gold


class LabelObjective(Objective):
    """Cross-entropy and accuracy of the one right option (`AnswerSpace.class_numbers`)."""

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the cross-entropies."""
        classes = self._classes(values, golds).expand(values.shape[:-1])
        found = functional.cross_entropy(values.flatten(0, -2), classes.flatten(), reduction="none")
        return found.view(values.shape[:-1])

    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return 1 where the likeliest class is right, else 0."""
        return (values.argmax(-1) == self._classes(values, golds)).double()

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return one offset for each class and one scale."""
        return calibration.fitted(values, self._classes(values, golds), weights=weights)

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a temperature."""
        return calibration.tempered(values, self._classes(values, golds), weights=weights)

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return the head of a multinomial logistic regression."""
        return calibration.fitted_head(features, self._classes(features, golds), self.answers.size, fit)

    def _classes(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        return torch.tensor(self.answers.class_numbers(golds), dtype=torch.long, device=values.device)
