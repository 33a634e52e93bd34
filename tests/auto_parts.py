"""A tiny plan of `auto`, its parts alone, and its trainings computed by hand."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional

from conftest import golds_of, tiny_problem
from cuecraft.artifact import Calibration, DeepCue, HardPrompt, SoftPrompt, calibration
from cuecraft.backbone import ClassHead
from cuecraft.methods import make_method
from cuecraft.methods.auto import choice
from cuecraft.methods.auto.contenders import Contender
from cuecraft.methods.auto.crossfit import Configuration, Trainings
from cuecraft.methods.auto.plans import AutoPlan, Preset, Schedule
from cuecraft.methods.auto.starts import GivenWords, Words
from cuecraft.methods.held_out import HeldOut, stratified_folds
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.soft import EmbeddingTraining

TINY = AutoPlan(
    folds=2,
    cues=2,
    searches_words=False,
    heads=(0.1, 1.0),
    penalties=(0.1, 1.0),
    first_order=1,
    deep=(Schedule(0.1, 4),),
    soft=(Schedule(0.02, 4),),
    alone=False,
    longer=0,
    otherwise=Schedule(0.2, 3),
    contrastive=(),
    examples=64,
)
#: Nothing but one training.
ONE = replace(TINY, cues=0, first_order=0, soft=())


def planned(monkeypatch, plan):
    """Let every preset mean a plan."""
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, plan))


@pytest.fixture
def tiny_plans(monkeypatch):
    planned(monkeypatch, TINY)


def auto(**options):
    return make_method("auto", options)


def trainings_of(problem, folds=2, most=8, pace=0.0):
    """Return trainings on folds of all examples of a problem."""
    pool = problem.pool
    return Trainings(problem, pool, stratified_folds(pool.labels, folds, 0), pace, most, [])


def words(problem, name="own", label_words=None, differs=False):
    ids = problem.initial_ids or (30, 31)
    return Words(name, label_words or GivenWords(), ids, differs=differs)


def deep(problem, rate=0.1, epochs=4, start=None):
    training = OffsetTraining(learning_rate=rate, epochs=epochs, schedule="linear")
    return Configuration((start or words(problem),), training)


def soft(problem, rate=0.02, epochs=4, start=None):
    training = EmbeddingTraining(learning_rate=rate, epochs=epochs, schedule="linear")
    return Configuration((start or words(problem),), training)


KINDS = {"deep": deep, "soft": soft}


def crossfitted(monkeypatch):
    """Remember the cross-fitted contenders of a choice."""
    found, plain = [], Trainings.cross_fit

    def cross_fit(self, configuration):
        found.append(plain(self, configuration))
        return found[-1]

    monkeypatch.setattr(Trainings, "cross_fit", cross_fit)
    return found


def probabilities(backbone, context, prompts, calibrations):
    """Return the mean `[B, C]` of what prompts answer, each alone, one text at a time, with its calibration."""
    each = []
    with torch.no_grad():
        for prompt, own in zip(prompts, calibrations, strict=True):
            rows = [backbone.class_logits(context.select([row]), prompt)[0] for row in range(len(context))]
            each.append((own.scale * torch.stack(rows).double() + torch.tensor(own.bias)).softmax(-1))
    return torch.stack(each).mean(0)


def by_hand(configuration, backbone, data, share=1.0, epochs=None):
    """Train a configuration on some examples by AdamW, one batch an epoch, and go a share of the way.

    Args:
        configuration: what is trained.
        backbone: the model.
        data: the examples, sixteen at most.
        share: of the way.
        epochs: where it stops early; the learning rate falls to zero over all of the configuration's.

    Returns:
        The prompt and its calibration.
    """
    options, base = configuration.training, HardPrompt(configuration.first.token_ids)
    unit = float(backbone.embedding_matrix().square().mean().sqrt()) * options.learning_rate
    is_deep = isinstance(options, OffsetTraining)
    begun = torch.zeros(backbone.offsets_shape(len(base))) if is_deep else base.vectors(backbone.embed)
    first, rates, correction = [begun], [unit], Calibration.none(2)
    with torch.no_grad():
        if backbone.head_kind == "sequence":
            head = calibration.fitted_head(backbone.features(data.context, base), data.labels, 2)
            first, rates = (
                [begun, head.weight, head.bias],
                [unit, options.head_learning_rate, options.head_learning_rate],
            )
        else:
            logits = backbone.class_logits(data.context, base)
            correction = calibration.fitted(logits, data.labels, weights=data.weights)

    def prompt(tensors):
        bare = DeepCue(base, tensors[0]) if is_deep else SoftPrompt(tensors[0])
        return bare.with_head(ClassHead(*tensors[1:]) if len(tensors) > 1 else None)

    now = [tensor.detach().clone().requires_grad_() for tensor in first]
    means, squares = ([torch.zeros_like(tensor) for tensor in first] for _ in range(2))
    weights = torch.ones(len(data)) if data.weights is None else data.weights
    for step in range(1, 1 + (options.epochs if epochs is None else epochs)):
        logits = correction.apply(backbone.class_logits(data.context, prompt(now)))
        losses = weights * functional.cross_entropy(logits, data.labels, reduction="none")
        gradients = torch.autograd.grad(losses.mean(), now)
        norm = torch.sqrt(sum(own.square().sum() for own in gradients))
        with torch.no_grad():
            for tensor, own, mean, square, rate in zip(now, gradients, means, squares, rates, strict=True):
                own = own * min(1.0, options.gradient_clip / float(norm))
                mean.mul_(0.9).add_(0.1 * own)
                square.mul_(0.999).add_(0.001 * own.square())
                size = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                tensor -= rate * (1 - (step - 1) / options.epochs) * size
    with torch.no_grad():
        return prompt([one + share * (other - one) for one, other in zip(first, now, strict=True)]), correction


def trained_tensors(prompt):
    """Return what is trained of a prompt."""
    own = prompt.embeddings if prompt.kind == "soft" else prompt.offsets
    return [own] if prompt.head is None else [own, prompt.head.weight, prompt.head.bias]


def assert_same_prompt(found, expected, tolerance=2e-6):
    for one, other in zip(trained_tensors(found), trained_tensors(expected), strict=True):
        assert torch.allclose(one, other, atol=tolerance), float((one - other).abs().max())


def flipped(problem, rows):
    """Return the same problem with other labels of some rows of all examples; there are no dev examples any more."""
    pool = problem.pool
    labels = pool.labels.clone()
    labels[rows] = 1 - labels[rows]
    return replace(problem, train=replace(pool, golds=golds_of(labels)), dev=None)


def problem_of(kind, request, **options):
    """Return the tiny problem of a backbone, with words in its prompt slot."""
    template = "{prompt: it was}{text}" if kind == "sequence" else None
    return tiny_problem(request.getfixturevalue(kind), template, **options)


@dataclass(eq=False)
class Given(Contender):
    """A contender whose answers are given."""

    count: int = 1
    can_join: bool = True
    candidate: object = None

    @property
    def members(self):
        return self.count

    @property
    def joins(self):
        return self.can_join

    def made(self):
        return self.candidate

    def words(self):
        return self.candidate


def answers(right, labels):
    """Return held-out answers that give the true class a probability."""
    own = torch.as_tensor(right, dtype=torch.float64)
    log_probs = torch.stack([1 - own, own], 1).log()
    sizes = (len(labels) // 2, len(labels) - len(labels) // 2)
    return HeldOut(torch.where(labels[:, None] == 1, log_probs, log_probs.flip(1)), golds_of(labels), sizes)


def tempered_by_hand(parts):
    """Return the prompts of contenders, and the calibration of each with the temperature of its contender's answers."""
    prompts, calibrations = [], []
    for part in parts:
        own = part.made()
        temperature = calibration.tempered(part.held_out.values, part.held_out.golds.classes).scale
        prompts += own.prompts
        calibrations += [
            Calibration(tuple(temperature * bias for bias in one.bias), temperature * one.scale)
            for one in own.calibrations
        ]
    return prompts, calibrations
