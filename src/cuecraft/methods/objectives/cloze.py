"""A word at the answer slot: minus the log of the probability of all right answers, and whether the likeliest is right.

The primary score is precision at 1, 0 or 1 for each text, and not the reciprocal rank: it is what LAMA and AutoPrompt
report, McNemar's test takes it as it is, and no vocabulary has to be sorted for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cuecraft.artifact import Calibration
from cuecraft.methods.objectives.base import Objective
from cuecraft.task.answers import Gold
from cuecraft.task.answers.cloze import Cloze


class ClozeObjective(Objective):
    """Minus the log of the summed probabilities of all right answers (nats), and precision at 1.

    Where any word may be the answer, values `[..., B, 3]` are over the whole vocabulary
    (`cuecraft.backbone.words.right_answers`), and the score is `first_token_precision_at_1`: words of several tokens
    are searched for in answering alone. No number is fitted to such values, and of several prompts that answer
    together the likeliest other word is not known exactly: each may have another.
    """

    answers: Cloze

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return minus the log-probabilities of the right answers."""
        if self.answers.is_open:
            return -values[..., 0]
        right = values.masked_fill(~self._right(values, golds), -torch.inf)
        return values.logsumexp(-1) - right.logsumexp(-1)

    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return 1 where the likeliest answer is a right one, else 0."""
        if self.answers.is_open:
            return (values[..., 1] > values[..., 2]).double()
        right = self._right(values, golds).expand(values.shape)
        return right.gather(-1, values.argmax(-1, keepdim=True))[..., 0].double()

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a scale; none in the open vocabulary."""
        return self._scaled(values, golds, weights)

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a scale; none in the open vocabulary."""
        return self._scaled(values, golds, weights)

    def normalised(self, values: Tensor) -> Tensor:
        """Return log-probabilities; in the open vocabulary values are such."""
        return values.double() if self.answers.is_open else super().normalised(values)

    def mixed(self, values: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the logs of mean probabilities `[B, O]`."""
        if not self.answers.is_open:
            return super().mixed(values, shares)
        weights = values.new_ones(len(values)) if shares is None else shares.to(values)
        return (values + (weights / weights.sum()).log()[:, None, None]).logsumexp(0)

    def _right(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return which options are right `[B, O]`."""
        found = torch.zeros(values.shape[-2:], dtype=torch.bool, device=values.device)
        pairs = [(row, place) for row, own in enumerate(self.answers.places(golds)) for place in own]
        rows, places = torch.tensor(pairs, device=values.device).unbind(1)
        found[rows, places] = True
        return found

    def _scaled(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None) -> Calibration:
        """Return the scale of least loss, penalised as `cuecraft.artifact.calibration.tempered` has it."""
        if self.answers.is_open:
            return self.plain()
        known = values.detach().double().cpu()
        shares = torch.ones(len(known), dtype=torch.float64) if weights is None else weights.double().cpu()
        shares = shares / shares.sum()

        def objective(log_scale: float) -> float:
            losses = self.losses(known * math.exp(log_scale), golds)
            return float(losses @ shares) + log_scale**2 / (2 * len(known))

        return Calibration(self.plain().bias, _least(objective))


def _least(objective: Callable[[float], float]) -> float:
    """Return the scale at whose logarithm an objective is least."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(objective, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-6}).x
    return math.exp(found)
