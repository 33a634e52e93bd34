"""One of a text's own options is right: cross-entropy and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cuecraft.artifact import Calibration
from cuecraft.backbone import ClassHead, FeatureScale
from cuecraft.core.errors import MethodError
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

    def fitted_head(
        self,
        features: Tensor,
        golds: Sequence[Gold],
        inverse_penalty: float = 1.0,
        weights: Tensor | None = None,
        scale: FeatureScale = FeatureScale.PLAIN,
    ) -> ClassHead:
        """Refuse: a class head has one row for each option that all texts share."""
        raise MethodError(
            f"a class head answers with options that all texts share, and answers of kind {self.answers.kind} bring "
            "their own; use a method that tunes the prompt of a language model, such as deep-cue"
        )

    def _classes(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        return torch.tensor(golds, dtype=torch.long, device=values.device)
