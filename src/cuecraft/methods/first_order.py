r"""First-order deep cue: one gradient for each example and class, and a logistic regression over them.

Near offsets of zero a frozen model's class logits are linear in the offsets ``o`` of a deep cue,

    f_c(x; o) = f_c(x; 0) + <J_c(x), o> + O(|o|^2),    J_c(x) = d f_c(x; o) / d o at o = 0,

so the best offsets are those of a penalised multinomial logistic regression with the gradients as features:

    min over o, b, t of  sum_n CE(t f(x_n; 0) + J(x_n) o + b, y_n) + penalty / 2 |W^-1 o|^2 + |b|^2 / 2 + log(t)^2 / 2.

``W`` gives each layer the same share of the kernel's trace, since gradients of early layers are far larger than those
of late ones; the gradients' mean over the classes is taken out, as a softmax does not see it. With ``G = J W`` as a
matrix ``[N C, P]`` the solution lies in the span of its rows (representer theorem): ``o = W G^T a``. So everything is
algebra on the kernel ``K = G G^T`` of ``N C`` rows, and a fit for each fold and penalty costs no pass. What was fitted
without a fold is then read by the model itself on that fold. So the penalty is chosen by true answers to held-out
examples, and a model that does not stay linear shows there.

Sources: the kernel view of fine-tuning (Malladi et al., ICML 2023, arXiv 2210.05643); gradients as features (Mu et al.,
ICLR 2020); linearised fine-tuning (Maddox et al., AISTATS 2021, arXiv 2103.01439).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from cuecraft.artifact import Calibration, DeepCue, Prompt
from cuecraft.artifact.predictor import finite
from cuecraft.backbone import AnyBackbone, Context
from cuecraft.backbone.budget import Budget, memory_of
from cuecraft.backbone.lanes import at_once, lanes
from cuecraft.core.deadline import check_time
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Document, Progress, Scored
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.held_out import Fold, stratified_folds, texts_of, untuned_answers
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import CalibrationKind, Method, Outcome, Problem, note, require_language_head
from cuecraft.methods.search.space import filled_start
from cuecraft.methods.untuned import untuned_prompt

_LARGEST_KERNEL = 8192  # rows: an eigendecomposition of so many takes about a minute on two cores
_SECONDS = 2e-10  # of an eigendecomposition, for each row of the kernel to the third power: measured on one core
_MEMORY = 4  # a quarter of the device's memory for the gradients
_RANK = 1e-7  # of the greatest eigenvalue: directions below are rounding errors of float32 gradients


class FirstOrder(Method):
    """The first-order deep cue: no training loop, a few seconds, and a penalty that folds choose."""

    name: ClassVar[str] = "first-order"
    weighs_examples: ClassVar[bool] = True

    prompt_length: int | None = Field(None, ge=1, description="tuned positions; by default the template's own words")
    penalties: tuple[float, ...] = Field(
        (0.1, 0.3, 1.0, 3.0, 10.0), min_length=1, description="of the logistic regression; folds choose one"
    )
    folds: int = Field(8, ge=2, description="folds of the labelled examples, at most")
    calibration: CalibrationKind = Field(
        CalibrationKind.FITTED,
        description="correction of the untuned prompt that competes: none, contextual, batch or fitted; the regression "
        "fits scale and bias by itself",
    )

    @field_validator("penalties")
    @classmethod
    def _positive(cls, penalties: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < penalty < math.inf for penalty in penalties):
            raise ValueError("penalties are positive numbers")
        return penalties

    def fit(self, problem: Problem) -> Outcome:
        """Fit offsets to the training and dev examples together; ship them where held-out answers are better.

        Raises:
            MethodError: the backbone answers by a class head, which would have to be fitted again for each fold; or the
                gradients of so many examples, classes and positions do not fit into memory.
        """
        require_language_head(problem, self.name)
        whole = replace(problem, train=problem.pool, dev=None)
        untuned, learnt = untuned_prompt(whole, self.calibration)
        folds = stratified_folds(
            whole.train.golds.strata, self.folds, problem.seed, texts_of(whole.train.context.examples)
        )
        if learnt is None or not folds:  # the time is over, or nothing can be checked
            return Outcome(untuned, untuned, [])
        return _Choice(whole, self, untuned, learnt, folds).made()


@dataclass(frozen=True, eq=False, kw_only=True)
class PenaltyStep(Scored):
    """Answers to held-out rows at one penalty; None for an infinite one, which leaves the prompt as it was."""

    penalty: float | None
    linear_loss: float

    def document(self) -> Document:
        """Return its fields, JSON-ready."""
        names = ("phase", "step", "total", "penalty", "train_loss", "linear_loss", "dev_loss", "dev_score", "best")
        return {name.replace("score", self.measure): getattr(self, name) for name in names}


@dataclass
class _Choice:
    """A choice among penalties, and the untuned prompt, by answers to held-out examples.

    Args:
        whole: the problem, with all labelled examples to learn from.
        options: of the method.
        untuned: the template's own words, calibrated.
        learnt: their score on all examples.
        folds: which examples are held out in turn.
    """

    whole: Problem
    options: FirstOrder
    untuned: Candidate
    learnt: Score
    folds: Sequence[Fold]
    trace: list[Document] = field(default_factory=list)
    least_score: float = -math.inf  # of what is to take the untuned prompt's place
    best: tuple[float, Score] | None = None  # the penalty, infinite for the untuned prompt, and its held-out score

    def made(self) -> Outcome:
        """Return the outcome: the penalty of least held-out loss, fitted to all examples, or the untuned prompt.

        What ships in its place has less held-out loss and no less accuracy.
        """
        linear: Linearised | None = None
        with self.whole.in_time():
            self._see_untuned()
            start = filled_start(self.whole, self.untuned, self.options.prompt_length, self.options.calibration)
            assert start.prompt.kind == "hard"
            linear = linearised(self.whole, start.prompt)
        for penalty in () if linear is None else self.options.penalties:
            assert linear is not None
            if self.whole.out_of_time():
                break
            with self.whole.in_time():  # what was checked before the time ended competes
                self._see(linear, penalty)
        penalty, held_out = self.best or (math.inf, None)
        if linear is None or not math.isfinite(penalty):
            return Outcome(self.untuned, self.untuned, self.trace, held_out=held_out)
        candidate = linear.candidate(linear.fitted(range(len(self.whole.train)), self.whole, penalty))
        return Outcome(self.untuned, candidate, self.trace, held_out=held_out)

    def _see_untuned(self) -> None:
        prompt = self.untuned.prompt
        assert prompt.kind == "hard"
        answers = untuned_answers(self.whole, self.whole.train, [prompt], self.folds)
        found = answers(0, self.options.calibration).values
        self._rate(math.inf, self.learnt, found, found)

    def _see(self, linear: Linearised, penalty: float) -> None:
        rows = range(len(self.whole.train))
        expected, found = linear.held_out(self.whole, self.folds, penalty)
        learnt = linear.answers(linear.fitted(rows, self.whole, penalty), rows)
        self._rate(penalty, self._score(learnt, rows), expected, found)

    def _score(self, logits: Tensor, rows: Sequence[int]) -> Score:
        return self.whole.train.select(list(rows)).scores(logits).mean

    def _rate(self, penalty: float, learnt: Score, expected: Tensor, found: Tensor) -> None:
        """Note answers to the held-out rows of one fold after another `[N, C]`, of the linear model and the model."""
        held_out = [row for fold in self.folds for row in fold.held_out]
        own = self._score(found, held_out)
        is_best = math.isfinite(own.loss) and (
            self.best is None or (own.loss < self.best[1].loss and own.primary >= self.least_score)
        )
        if is_best:
            self.best = (penalty, own)
        if math.isinf(penalty):
            self.least_score = own.primary
        step = PenaltyStep(
            FirstOrder.name,
            len(self.trace),
            len(self.options.penalties),
            penalty=_shown(penalty),
            train_loss=learnt.loss,
            linear_loss=self._score(expected, held_out).loss,
            dev_loss=own.loss,
            dev_score=own.primary,
            measure=own.measure,
            best=is_best,
        )
        note(self.whole, self.trace, step)


def _shown(penalty: float) -> float | None:
    """Return a penalty as JSON has it: None for an infinite one."""
    return penalty if math.isfinite(penalty) else None


@dataclass(frozen=True, eq=False)
class Solution:
    """What a logistic regression over gradients found.

    Args:
        weights: `[R]` of the kernel's features.
        calibration: scale of the untuned logits, and bias of each class.
    """

    weights: np.ndarray
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class Linearised:
    """A prompt's class logits over some examples as a linear function of a deep cue's offsets.

    Args:
        base: the prompt, whose offsets are zero here.
        logits: `[N, C]` class logits with offsets of zero, float64.
        gradients: `[N C, P]` gradients of the logits in the whitened coordinates, without their mean over classes.
        unit: `[n_layers, S, d]` offsets of one unit of a whitened coordinate, W.
        features: `[N, C, R]` features whose products are the kernel's, float64.
        back: `[N C, R]` maps weights of features to weights of gradients, float64.
    """

    base: Prompt
    logits: np.ndarray
    gradients: Tensor
    unit: Tensor
    features: np.ndarray
    back: np.ndarray

    def fitted(self, rows: Sequence[int], problem: Problem, penalty: float) -> Solution:
        """Fit the regression to some rows of the training examples of a problem."""
        own, weights = list(rows), problem.train.weights_of(list(rows))
        counts = None if weights is None else weights.double().cpu().numpy()
        labels = problem.train.labels[own].cpu().numpy()
        return logistic(self.features[own], self.logits[own], labels, penalty, counts)

    def answers(self, found: Solution, rows: Sequence[int]) -> Tensor:
        """Return the logits `[n, C]` that a solution has by the linear model, float64."""
        own = list(rows)
        linear = found.calibration.scale * self.logits[own] + self.features[own] @ found.weights
        return torch.from_numpy(linear + np.asarray(found.calibration.bias))

    def candidate(self, found: Solution) -> Candidate:
        """Return a solution as a deep cue with its calibration."""
        # Scale applies to all logits afterwards, and so to what the offsets add.
        weights = torch.from_numpy(self.back @ found.weights / found.calibration.scale)
        own = weights.to(self.gradients) @ self.gradients
        return Candidate(DeepCue(self.base, own.view(self.unit.shape) * self.unit), found.calibration)

    def held_out(self, problem: Problem, folds: Sequence[Fold], penalty: float) -> tuple[Tensor, Tensor]:
        """Return answers to the held-out rows of each fold in turn `[N, C]`: the linear model's, and the model's."""
        solutions = [self.fitted(fold.train, problem, penalty) for fold in folds]
        linear = [self.answers(found, fold.held_out) for fold, found in zip(folds, solutions, strict=True)]
        candidates = [self.candidate(found) for found in solutions]
        contexts = [problem.train.context.select(fold.held_out) for fold in folds]
        with torch.no_grad():
            parts = [(context, own.prompt) for context, own in zip(contexts, candidates, strict=True)]
            logits = problem.backbone.class_logits_each(parts)
        pairs = zip(candidates, logits, strict=True)
        return torch.cat(linear), torch.cat([own.calibration.apply(part.double().cpu()) for own, part in pairs])


def linearised(problem: Problem, prompt: Prompt) -> Linearised | None:
    """Linearise a prompt's class logits over the training examples; None where the time ends before.

    Raises:
        MethodError: the answers are not one class each, the gradients do not fit into memory, or all are zero.
    """
    _ = problem.train.labels  # or it says that there are none
    backbone, context = problem.backbone, problem.train.context
    problem.train.golds.classes  # noqa: B018  # raises where answers are no classes, before anything is read
    shape = backbone.offsets_shape(len(prompt))
    classes = problem.task.answers.size
    rows = len(context) * classes
    size = rows * math.prod(shape) * 4
    if rows > _LARGEST_KERNEL or size > memory_of(backbone.device) // _MEMORY:
        raise MethodError(
            f"{FirstOrder.name} keeps a gradient for each example and class; {len(context)} times {classes} of them "
            f"take {size / 2**30:.1f} GiB; give fewer examples or a shorter prompt, or use deep-cue"
        )
    parts = []
    step, begun = backbone.budget.rows, time.perf_counter()
    for first in range(0, len(context), step):
        left = (len(context) - first) / first if first else 0.0  # of what was done
        if problem.out_of_time(left * (time.perf_counter() - begun)):
            return None  # all of them are needed
        some = context.select(range(first, min(first + step, len(context))))
        parts.append(class_gradients(backbone, some, prompt, shape))
        problem.report(Progress("gradients", first + len(some), len(context)))
    if problem.out_of_time(rows**3 * _SECONDS):
        return None
    gradients, logits = (torch.cat(own) for own in zip(*parts, strict=True))
    gradients = gradients - gradients.mean(1, keepdim=True)
    return _whitened(prompt, gradients, finite(logits, backbone).double().cpu().numpy(), shape)


def class_gradients(
    backbone: AnyBackbone, context: Context, prompt: Prompt, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients `[B, C, P]` of class logits at offsets of zero, and the logits `[B, C]`.

    Each example has offsets of its own, so one backward pass for each class gives the gradients of all examples.

    Args:
        backbone: the backbone.
        context: the examples.
        prompt: the prompt that the offsets are added to.
        shape: `[n_layers, S, d]` of the offsets; P is their product.
    """
    dtype = torch.promote_types(backbone.model.dtype, torch.float32)

    def taken(rows: range) -> tuple[Tensor, Tensor]:
        offsets = torch.zeros(len(rows), *shape, dtype=dtype, device=backbone.device, requires_grad=True)
        parts = [(context.select([row]), DeepCue(prompt, own)) for row, own in zip(rows, offsets, strict=True)]
        with torch.enable_grad():
            own = torch.cat(backbone.class_logits_each(parts))
        classes, each = own.shape[1], []
        for c in range(classes):
            check_time()
            each.append(torch.autograd.grad(own[:, c].sum(), offsets, retain_graph=c + 1 < classes)[0])
        return torch.stack([part.flatten(1) for part in each], dim=1), own.detach()

    def run(budget: Budget) -> tuple[Tensor, Tensor]:
        count = lanes(backbone.device)
        most = -(-budget.rows // count)
        passes = [range(first, min(first + most, len(context))) for first in range(0, len(context), most)]
        found, logits = zip(*at_once(taken, passes, count), strict=True)
        return torch.cat(found), torch.cat(logits)

    return backbone.within_memory(run)


def _whitened(prompt: Prompt, gradients: Tensor, logits: np.ndarray, shape: tuple[int, int, int]) -> Linearised:
    """Scale each layer's gradients `[N, C, P]` to one share of the kernel's trace, and the mean of that trace to 1."""
    rows, layers = gradients.shape[0] * gradients.shape[1], shape[0]
    flat = gradients.reshape(rows, layers, -1)
    sizes = torch.stack([flat[:, layer].double().square().sum() for layer in range(layers)]) / rows
    if not bool((sizes > 0).any()):
        raise MethodError(f"{FirstOrder.name}: offsets change no answer of this model; use another method")
    # A layer whose offsets change nothing gets none.
    factors = torch.where(sizes > 0, (sizes * (sizes > 0).sum()).clamp(min=1e-300).rsqrt(), 0.0).to(gradients.dtype)
    scaled = (flat * factors[None, :, None]).flatten(1)
    kernel = (scaled @ scaled.T).double().cpu().numpy()
    values, vectors = np.linalg.eigh(kernel)
    kept = values > values[-1] * _RANK
    values, vectors = values[kept], vectors[:, kept]
    features = (vectors * np.sqrt(values)).reshape(*logits.shape, -1)
    unit = factors[:, None, None].expand(shape).contiguous()
    return Linearised(prompt, logits, scaled, unit, features, vectors / np.sqrt(values))


def logistic(
    features: np.ndarray, logits: np.ndarray, labels: np.ndarray, penalty: float, counts: np.ndarray | None = None
) -> Solution:
    """Fit a penalised multinomial logistic regression on top of known logits.

    Minimises ``sum_n c_n CE(t f_n + F_n w + b, y_n) + penalty / 2 |w|^2 + |b|^2 / 2 + log(t)^2 / 2``.

    Args:
        features: `[N, C, R]` F.
        logits: `[N, C]` f.
        labels: `[N]` class numbers y.
        penalty: of the weights; infinite for weights of zero.
        counts: `[N]` how much each example counts, c; None for 1.
    """
    from scipy.optimize import minimize

    count, classes, rank = features.shape
    size = rank if math.isfinite(penalty) else 0
    flat = features.reshape(count * classes, rank)[:, :size]
    each = np.ones(count) if counts is None else counts
    strength = np.concatenate([np.full(size, penalty if size else 0.0), np.ones(classes + 1)])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        check_time()
        weights, bias, scale = parameters[:size], parameters[size:-1], np.exp(parameters[-1])
        z = scale * logits + (flat @ weights).reshape(count, classes) + bias
        z -= z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        residual = np.exp(log_p)
        residual[np.arange(count), labels] -= 1
        residual *= each[:, None]
        own = np.concatenate([flat.T @ residual.ravel(), residual.sum(0), [scale * (residual * logits).sum()]])
        loss = -(each * log_p[np.arange(count), labels]).sum() + (strength * parameters**2).sum() / 2
        return float(loss), own + strength * parameters

    options: dict[str, Any] = {"maxiter": 500, "gtol": 1e-7, "ftol": 1e-12, "maxcor": 20}
    found = minimize(objective, np.zeros(size + classes + 1), jac=True, method="L-BFGS-B", options=options).x
    weights = np.zeros(rank)
    weights[:size] = found[:size]
    return Solution(weights, Calibration(tuple(float(b) for b in found[size:-1]), float(np.exp(found[-1]))))
