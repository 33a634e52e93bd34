"""Sets of labels: binary cross-entropy summed over the labels, heads of one regression a label, and thresholds.

Values are log-odds. Scores of label words are relative to their mean over the labels (`Multilabel.level`), and become
log-odds by a calibration: a scale, a level that all labels share, and a deviation for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.backbone.columns import scaled_features
from cuecraft.methods.objectives.base import Objective
from cuecraft.task.answers import Gold, Values
from cuecraft.task.answers.multilabel import Multilabel

_WIDE, _NARROW = 3.0, 1.0  # standard deviations (log-odds) of what a label deviates by: of words, and of known log-odds
_SHRINKAGE = 20.0  # texts of a label that count as much as the threshold of all labels
_TRIED = 200  # thresholds of all labels that are tried, at most
_ENDS = (1e-6, 1 - 1e-6)  # of probabilities, whose log-odds are finite


class MultilabelObjective(Objective):
    """Binary cross-entropy summed over the labels; the F1 of each text's set."""

    answers: Multilabel

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return minus the log-probabilities (nats) of the sets, labels being independent."""
        truth = self._truth(values, golds).expand(values.shape)
        return functional.binary_cross_entropy_with_logits(values, truth, reduction="none").sum(-1)

    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the F1 of each set, 1 where an empty one is answered with an empty one."""
        # As decisions have it: probabilities and thresholds of NumPy, so that ties fall alike.
        least = torch.from_numpy(self.answers.least).to(values.device)
        return set_f1(values.double().sigmoid() >= least, self._truth(values.double(), golds) > 0)

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a scale, a level and a deviation for each label, by penalised logistic regression."""
        return self._calibrated(values, golds, _WIDE, weights)

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return the same for values that are log-odds already, whose labels deviate less.

        A scale alone does not do: heads of rare labels are too unsure of them on texts that they have not seen.
        """
        return self._calibrated(values, golds, _NARROW, weights)

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return a head of one logistic regression a label (scikit-learn, L2); of one alike in all texts, its rate."""
        from sklearn.linear_model import LogisticRegression

        read = scaled_features(features.double(), fit.scale).cpu().numpy()
        shares = fit.shares
        counts = np.ones(len(read)) if shares is None else shares
        weight, bias = np.zeros((self.answers.size, read.shape[1])), np.zeros(self.answers.size)
        for number, truth in enumerate(self.answers.indicators(golds).T):
            if truth.min() == truth.max():
                right = (counts @ truth + 0.5) / (counts.sum() + 1)
                bias[number] = np.log(right / (1 - right))
                continue
            model = LogisticRegression(C=fit.inverse_penalty, max_iter=1000).fit(read, truth, sample_weight=shares)
            weight[number], bias[number] = model.coef_[0], model.intercept_[0]
        rows, level = (torch.from_numpy(part).float().to(features.device) for part in (weight, bias))
        return ClassHead(rows, level, fit.scale)

    def normalised(self, values: Tensor) -> Tensor:
        """Return values as they are, in float64: labels do not exclude each other."""
        return values.double()

    def mixed(self, values: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the log-odds of the mean probability of each label."""
        weights = torch.ones(len(values), dtype=values.dtype) if shares is None else shares
        logs = (weights / weights.sum()).to(values).log()[:, None, None]
        right, wrong = ((logs + functional.logsigmoid(own)).logsumexp(0) for own in (values, -values))
        return right - wrong

    def alike(self, golds: Sequence[Gold]) -> Tensor:
        """Return the shares of labels of both sets that are in each `[B, B]` (Jaccard), 1 for two empty ones."""
        truth = torch.from_numpy(self.answers.indicators(golds))
        both, sizes = truth @ truth.T, truth.sum(1)
        either = sizes[:, None] + sizes[None] - both
        return torch.where(either > 0, both / either.clamp_min(1), 1.0).float()

    def decided(self, values: Tensor, golds: Sequence[Gold]) -> Multilabel:
        """Return the classes with thresholds fitted to right answers of held-out values `[B, L]`."""
        probabilities = self.answers.probabilities(values.double().cpu().numpy())
        thresholds = fitted_thresholds(probabilities, self.answers.indicators(golds))
        return replace(self.answers, thresholds=tuple(thresholds.tolist()))

    def _truth(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        return torch.from_numpy(self.answers.indicators(golds)).to(values)

    def _calibrated(
        self, values: Tensor, golds: Sequence[Gold], deviation: float, weights: Tensor | None = None
    ) -> Calibration:
        """Return what minimises the mean loss plus penalties ``|deviations|^2 / (2 N sd^2) + log(scale)^2 / (2 N)``."""
        from scipy.optimize import minimize

        x, y = values.double().cpu().numpy(), self.answers.indicators(golds)
        counts = np.ones(len(x)) if weights is None else weights.double().cpu().numpy()
        shares = (counts / counts.mean())[:, None]
        strengths = np.concatenate([[1.0, 1e-3], np.full(self.answers.size, deviation**-2)])

        def objective(parameters: Values) -> tuple[float, Values]:
            scale, bias = np.exp(parameters[0]), parameters[1] + parameters[2:]
            z = scale * x + bias
            residual = shares * (self.answers.probabilities(z) - y)
            own = residual.sum(0)
            gradient = np.concatenate([[scale * (residual * x).sum(), own.sum()], own])
            loss = (shares * (np.logaddexp(0.0, z) - y * z)).sum() + (strengths * parameters**2).sum() / 2
            return float(loss) / len(x), (gradient + strengths * parameters) / len(x)

        options = {"maxiter": 500}
        found = minimize(objective, np.zeros(2 + self.answers.size), jac=True, method="L-BFGS-B", options=options).x
        return Calibration(tuple((found[1] + found[2:]).tolist()), float(np.exp(found[0])))


def set_f1(found: Tensor, truth: Tensor) -> Tensor:
    """Return the F1 `[..., B]` of sets `[..., B, L]` of truth values, 1 where both are empty."""
    both, sizes = (found & truth).sum(-1).double(), (found.sum(-1) + truth.sum(-1)).double()
    return torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), 1.0)


def fitted_thresholds(probabilities: Values, truth: Values) -> Values:
    """Return the least probability `[L]` at which each label is answered.

    One threshold for all labels maximises the mean F1 of the texts' sets. For each label a threshold maximises the F1
    over its own column, and counts ``n / (n + 20)`` in the mean with the one for all, in log-odds, where n texts have
    the label: a rare label's own threshold is mostly luck. A label alike in all texts has that of all.

    Args:
        probabilities: `[B, L]` of held-out texts.
        truth: `[B, L]` 1 where a label is right, else 0.
    """
    right = truth > 0
    shared = _best_for_all(probabilities, right)
    own = _best_of_each(probabilities, right, shared)
    counts = right.sum(0)
    own_share = counts / np.maximum(counts + _SHRINKAGE, 1e-9)
    share = np.where(counts < len(right), own_share, 0.0)  # none of a label that all have
    return _probability(share * _log_odds(own) + (1 - share) * _log_odds(shared))


def _best_for_all(probabilities: Values, right: np.ndarray) -> float:
    """Return the threshold that maximises the mean F1 of sets; of several the one nearest to .5."""
    known = np.unique(np.clip(probabilities, *_ENDS))
    if len(known) > _TRIED:
        known = np.unique(np.quantile(known, np.linspace(0, 1, _TRIED)))
    tried = np.concatenate([[known[0] / 2], (known[1:] + known[:-1]) / 2, [(1 + known[-1]) / 2]])
    sizes = right.sum(1)

    def mean_f1(least: float) -> float:
        found = probabilities >= least
        total = found.sum(1) + sizes
        return float(np.where(total > 0, 2 * (found & right).sum(1) / np.maximum(total, 1), 1.0).mean())

    return float(max(zip(map(mean_f1, tried), -np.abs(_log_odds(tried)), tried, strict=True))[2])


def _best_of_each(probabilities: Values, right: np.ndarray, shared: float) -> Values:
    """Return the threshold `[L]` that maximises the F1 of each column; of several the one nearest to the shared one."""
    order = np.argsort(-probabilities, axis=0, kind="stable")
    sorted_, hits = np.clip(np.take_along_axis(probabilities, order, 0), *_ENDS), np.take_along_axis(right, order, 0)
    nothing = np.zeros((1, right.shape[1]))
    answered = np.arange(len(right) + 1)[:, None]  # the greatest so many
    f1 = 2 * np.concatenate([nothing, hits.cumsum(0)]) / np.maximum(answered + right.sum(0), 1)
    above, below = np.concatenate([nothing + 1, sorted_]), np.concatenate([sorted_, nothing])
    least = (above + below) / 2
    rated = np.where(above > below, f1, -1.0)  # equal probabilities cannot be separated
    distance = np.where(rated >= rated.max(0) - 1e-12, np.abs(_log_odds(least) - _log_odds(shared)), np.inf)
    found: Values = np.take_along_axis(least, distance.argmin(0)[None], 0)[0]
    return found


def _log_odds(probability: Any) -> Values:
    found: Values = np.log(probability) - np.log1p(-np.asarray(probability))
    return found


def _probability(log_odds: Any) -> Values:
    found: Values = 1 / (1 + np.exp(-log_odds))
    return found
