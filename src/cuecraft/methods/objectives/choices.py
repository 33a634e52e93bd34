"""One of a text's own options is right: cross-entropy and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cuecraft.artifact import Calibration
from cuecraft.methods.objectives.base import Objective
from cuecraft.methods.objectives.labels import LabelObjective
from cuecraft.task.answers import Gold


class ChoiceObjective(LabelObjective):
    """Cross-entropy and accuracy of the right option; a calibration is a scale alone, since places mean nothing."""

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return one scale."""
        return self.tempered(values, golds, weights)

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a temperature."""
        return replace(super().tempered(values, golds, weights), bias=())

    fitted_head = Objective.fitted_head  # refused: texts share no options

    def _classes(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        return torch.tensor(golds, dtype=torch.long, device=values.device)
