"""What is fitted on top of a frozen model's outputs: calibrations of its answers, and class heads of its features.

A calibration takes a language model's preference for some label words out of its answers. Every kind ends as one affine
map of the class logits, ``scale * logits + bias``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cuecraft.backbone import ClassHead, FeatureScale
from cuecraft.backbone.columns import scaled_features
from cuecraft.backbone.prompt import Prompt
from cuecraft.core.errors import MethodError

V = TypeVar("V", Tensor, np.ndarray)


@dataclass(frozen=True)
class Calibration:
    """``scale * values + bias``.

    Args:
        bias: `[O]` added to each option's value; empty where examples bring options of their own.
        scale: factor on all logits, positive.
    """

    bias: tuple[float, ...]
    scale: float = 1.0

    @classmethod
    def none(cls, num_classes: int) -> Calibration:
        """Return the calibration that changes nothing."""
        return cls((0.0,) * num_classes)

    def then(self, other: Calibration) -> Calibration:
        """Return the calibration that applies this one and then another."""
        bias = tuple(own * other.scale + added for own, added in zip(self.bias, other.bias, strict=True))
        return Calibration(bias, self.scale * other.scale)

    def apply(self, values: V) -> V:
        """Return calibrated values `[..., O]`, of torch or of NumPy; no bias at all is added as zeros."""
        scaled = values * self.scale
        if not self.bias:
            return scaled
        if isinstance(values, Tensor):
            return scaled + torch.tensor(self.bias, dtype=values.dtype, device=values.device)
        return np.asarray(scaled + np.array(self.bias))


@dataclass(frozen=True)
class CalibratedPrompt:
    """A prompt and the calibration of its class logits."""

    prompt: Prompt
    calibration: Calibration


class AnswersTogether:
    """A prompt with its calibration, and others whose probabilities are averaged with its own."""

    prompt: Prompt
    calibration: Calibration
    others: tuple[CalibratedPrompt, ...]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts that answer, one or several."""
        return (self.prompt, *(other.prompt for other in self.others))

    @property
    def reads_words(self) -> bool:
        """Whether label words are read by one of the prompts: by none where each has a class head."""
        return any(prompt.head is None for prompt in self.prompts)

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """The calibration of each prompt, in the order of `prompts`."""
        return (self.calibration, *(other.calibration for other in self.others))


def contextual(content_free_logits: Tensor) -> Calibration:
    """Divide by what the model answers to texts without content (Zhao et al., ICML 2021, arXiv 2102.09690).

    Args:
        content_free_logits: `[N, C]` logits of texts such as "N/A"; their mean probability becomes uniform.
    """
    return _flattening(content_free_logits)


def batch(logits: Tensor) -> Calibration:
    """Divide by the mean answer over unlabelled texts (batch calibration, Zhou et al., ICLR 2024, 2309.17249).

    Args:
        logits: `[N, C]` logits of texts of the task; no labels are used.
    """
    return _flattening(logits)


def fitted(logits: Tensor, labels: Tensor, strength: float = 1.0, weights: Tensor | None = None) -> Calibration:
    """Fit one offset for each class and one scale to labels, by penalised logistic regression.

    Minimises the mean cross-entropy plus ``strength / (2 N) * (|bias|^2 + log(scale)^2)``, so that few labels move
    it little (vector scaling with a shared scale: Guo et al., ICML 2017, arXiv 1706.04599).

    Args:
        logits: `[N, C]`.
        labels: `[N]` class numbers.
        strength: of the penalty.
        weights: `[N]` of the examples in the mean; None for equal ones.
    """
    from scipy.optimize import minimize

    x = logits.double().cpu().numpy()
    y = labels.cpu().numpy()
    count, classes = x.shape
    shares = np.ones(count) if weights is None else weights.double().cpu().numpy()
    shares = shares[:, None] / shares.mean()

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        bias, scale = parameters[:classes], np.exp(parameters[classes])
        z = scale * x + bias
        z -= z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        residual = np.exp(log_p)
        residual[np.arange(count), y] -= 1
        residual *= shares
        gradient = np.append(residual.mean(0), scale * (residual * x).sum(1).mean())
        loss = -(shares[:, 0] * log_p[np.arange(count), y]).mean() + strength / (2 * count) * parameters @ parameters
        return float(loss), gradient + strength / count * parameters

    found = minimize(objective, np.zeros(classes + 1), jac=True, method="L-BFGS-B").x
    return Calibration(tuple(float(b) for b in found[:classes]), float(np.exp(found[classes])))


def tempered(logits: Tensor, labels: Tensor, strength: float = 1.0, weights: Tensor | None = None) -> Calibration:
    """Fit one scale to labels: temperature scaling (Guo et al., ICML 2017, arXiv 1706.04599).

    Minimises the mean cross-entropy plus ``strength / (2 N) * log(scale)^2``. One number, where `fitted` has C + 1:
    each number that is fitted to N labels costs about 1 / (2 N) nats on others.

    Args:
        logits: `[N, C]`.
        labels: `[N]` class numbers.
        strength: of the penalty.
        weights: `[N]` of the examples in the mean; None for equal ones.
    """
    from scipy.optimize import minimize_scalar

    x, rows = logits.double().cpu().numpy(), np.arange(len(labels))
    y = labels.cpu().numpy()
    shares = None if weights is None else weights.double().cpu().numpy()

    def objective(log_scale: float) -> float:
        z = np.exp(log_scale) * x
        z -= z.max(1, keepdims=True)
        losses = np.log(np.exp(z).sum(1)) - z[rows, y]
        return float(np.average(losses, weights=shares) + strength / (2 * len(y)) * log_scale**2)

    found = minimize_scalar(objective, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-6}).x
    return Calibration((0.0,) * x.shape[1], float(np.exp(found)))


@dataclass(frozen=True)
class HeadFit:
    """How a class head is fitted to features.

    Args:
        inverse_penalty: scikit-learn's C: the smaller, the stronger the penalty.
        weights: `[B]` of the examples; None for equal ones.
        scale: what becomes of the features before.
    """

    inverse_penalty: float = 1.0
    weights: Tensor | None = None
    scale: FeatureScale = FeatureScale.PLAIN

    @property
    def shares(self) -> np.ndarray | None:
        """The weights in float64, as scikit-learn takes them."""
        return None if self.weights is None else self.weights.double().cpu().numpy()


PLAIN_FIT = HeadFit()


def fitted_head(features: Tensor, labels: Tensor, classes: int, fit: HeadFit = PLAIN_FIT) -> ClassHead:
    """Fit a class head by logistic regression (scikit-learn, L2).

    Args:
        features: `[B, d]`, not scaled yet.
        labels: `[B]` class numbers.
        classes: C.
        fit: how.

    Raises:
        MethodError: a class has no example.
    """
    from sklearn.linear_model import LogisticRegression

    truth = labels.cpu().numpy()
    if len(set(truth.tolist())) < classes:
        raise MethodError("a class has no training example, so its row of the class head cannot be fitted")
    model = LogisticRegression(C=fit.inverse_penalty, max_iter=1000)
    model.fit(scaled_features(features.double(), fit.scale).cpu().numpy(), truth, sample_weight=fit.shares)
    weight, bias = torch.tensor(model.coef_), torch.tensor(model.intercept_)
    if classes == 2:  # scikit-learn keeps one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return ClassHead(weight.float().to(features.device), bias.float().to(features.device), fit.scale)


def dividing_offsets(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return the offsets `[..., C]` that divide answers by their mean, ``log prior - log mean_n p(c | n)``.

    Args:
        logits: `[..., N, C]`.
        prior: `[C]` each class's share, summing to 1; None for equal ones.
    """
    log_mean = logits.double().log_softmax(-1).logsumexp(-2)
    offsets = -log_mean if prior is None else prior.to(log_mean).log() - log_mean
    return offsets - offsets.mean(-1, keepdim=True)


def matching_offsets(logits: Tensor, prior: Tensor | None = None, steps: int = 1000) -> Tensor:
    """Return the offsets `[..., C]` after which the mean answer is the prior (Liusie et al., 2023, arXiv 2309.04992).

    They are the fixed point of dividing by the mean and normalising again, which dividing once comes near to.

    Args:
        logits: `[..., N, C]`.
        prior: `[C]` each class's share, summing to 1; None for equal ones.
        steps: divisions at most; it stops earlier where they change nothing.
    """
    logits = logits.double()
    offsets = torch.zeros_like(logits[..., 0, :])
    for _ in range(steps):
        change = dividing_offsets(logits + offsets.unsqueeze(-2), prior)
        offsets = offsets + change
        if bool((change.abs() < 1e-9).all()):
            break
    return offsets


def _flattening(logits: Tensor) -> Calibration:
    """Return the offsets that divide by the mean probability of each class."""
    return Calibration(tuple(float(b) for b in dividing_offsets(logits)))
