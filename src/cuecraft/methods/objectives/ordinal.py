"""Numbers in a range: cross-entropy of the options nearest to the right number; minus the error of the expected one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cuecraft.artifact import calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.core.errors import MethodError
from cuecraft.methods.objectives.labels import LabelObjective
from cuecraft.task.answers import Gold
from cuecraft.task.answers.ordinal import Ordinal


class OrdinalObjective(LabelObjective):
    """Cross-entropy of ordered options, of which the two nearest to a number share its text."""

    answers: Ordinal

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the cross-entropies; of a number that is an option, minus the log-probability of that one."""
        shares = torch.from_numpy(self.answers.shares(golds)).to(values)
        return -(shares * values.log_softmax(-1)).sum(-1)

    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return minus the absolute error of the expected number."""
        numbers = torch.tensor(self.answers.numbers, dtype=torch.float64, device=values.device)
        truth = torch.tensor(golds, dtype=torch.float64, device=values.device)
        return -(values.double().softmax(-1) @ numbers - truth).abs()

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return the head of a multinomial logistic regression; an option without an example lies between others.

        Its row is that of its number on the line between its neighbours' rows, its bias less by the log of the number
        of texts.
        """
        classes = self._classes(features, golds)
        known = sorted(set(classes.tolist()))
        if len(known) < 2:
            raise MethodError("all texts have the same number, so a class head cannot be fitted; give others too")
        own = torch.tensor([known.index(number) for number in classes.tolist()], device=features.device)
        found = calibration.fitted_head(features, own, len(known), fit)
        if len(known) == self.answers.size:
            return found
        numbers = np.array(self.answers.numbers)
        rows = torch.cat([found.weight, found.bias[:, None]], dim=1).cpu().numpy()
        between = np.stack([np.interp(numbers, numbers[known], column) for column in rows.T], axis=1)
        missing = [number for number in range(self.answers.size) if number not in known]
        between[missing, -1] -= math.log(len(golds) + 1)
        whole = torch.from_numpy(between).to(found.weight)
        return replace(found, weight=whole[:, :-1].contiguous(), bias=whole[:, -1].contiguous())

    def decided(self, values: Tensor, golds: Sequence[Gold]) -> Ordinal:
        """Return the numbers with the margin of intervals fitted to right answers of held-out values `[B, O]`."""
        answers = self.answers
        low, high = answers.middle(answers.probabilities(values.double().cpu().numpy())).T
        truth = np.array(golds, dtype=float)
        outside = np.sort(np.maximum(low - truth, truth - high))  # negative within
        place = math.ceil((len(outside) + 1) * answers.coverage - 1e-9) - 1  # 100 * .55 is a little more than 55
        width = answers.numbers[-1] - answers.numbers[0]
        return replace(answers, margin=float(outside[place]) if place < len(outside) else width)
