"""The first-order deep cue: gradients, kernel and regression against finite differences and dense solutions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from conftest import LM_TEMPLATE, golds_of, make_causal, make_examples, make_task, tiny_problem
from cuecraft.artifact import DeepCue, HardPrompt
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import MethodError
from cuecraft.data import Record
from cuecraft.methods import make_method
from cuecraft.methods.first_order import class_gradients, linearised, logistic
from cuecraft.methods.held_out import stratified_folds, texts_of
from cuecraft.methods.problem import CalibrationKind, Problem, Score, label_context, score
from cuecraft.methods.untuned import starting_point

CUE = HardPrompt((300, 301, 302))


def whole_of(problem):
    return replace(problem, train=problem.pool, dev=None)


@pytest.mark.parametrize("words", [None, {"negative": ["never good", "bad"], "positive": ["bright and warm"]}])
def test_gradients_are_finite_differences_of_the_models_own_logits(byte_tokenizer, words):
    # GPT-2, since the norms of Llama and kin compute in float32 whatever the weights are.
    backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    context = backbone.context(make_examples(), make_task(LM_TEMPLATE, words))
    shape = backbone.offsets_shape(len(CUE))
    found, logits = class_gradients(backbone, context, CUE, shape)
    assert found.dtype == torch.float64
    with torch.no_grad():
        assert torch.allclose(logits, backbone.class_logits(context, CUE), atol=1e-10)
        generator = torch.Generator().manual_seed(5)
        for _ in range(4):
            way = torch.randn(shape, generator=generator, dtype=torch.float64)
            up, down = (backbone.class_logits(context, DeepCue(CUE, sign * 1e-5 * way)) for sign in (1, -1))
            assert torch.allclose(found @ way.flatten(), (up - down) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_gradients_of_a_batch_are_those_of_each_example_alone(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    base = HardPrompt((30, 31, 32))
    shape = backbone.offsets_shape(len(base))
    found, _ = class_gradients(backbone, problem.train.context, base, shape)
    for row in range(len(problem.train)):
        offsets = torch.zeros(shape, requires_grad=True)
        logits = backbone.class_logits(problem.train.context.select([row]), DeepCue(base, offsets))[0]
        for c in range(len(logits)):
            (own,) = torch.autograd.grad(logits[c], offsets, retain_graph=True)
            assert torch.allclose(found[row, c], own.flatten(), atol=1e-5)


def test_features_and_offsets_are_those_of_the_dense_kernel(causal):
    """The linear model is `f + J o` with the very offsets that ship, in the coordinates of the plain gradients."""
    problem = whole_of(tiny_problem(causal))
    linear = linearised(problem, CUE)
    shape = causal.offsets_shape(len(CUE))
    gradients, logits = class_gradients(causal, problem.train.context, CUE, shape)
    rows = list(range(len(problem.train)))
    found = linear.fitted(rows, problem, 0.3)
    candidate = linear.candidate(found)
    centred = gradients - gradients.mean(1, keepdim=True)
    by_hand = logits + centred @ candidate.prompt.offsets.flatten()
    expected = found.calibration.apply(by_hand.double())
    assert torch.allclose(linear.answers(found, rows), expected, atol=1e-4)
    # Every layer has the same share of the kernel's trace.
    sizes = linear.gradients.view(len(linear.gradients), shape[0], -1).square().sum((0, 2))
    assert torch.allclose(sizes, sizes.mean().expand_as(sizes), rtol=1e-4)
    assert float(sizes.sum() / len(linear.gradients)) == pytest.approx(1, abs=1e-4)


def test_the_regression_is_the_dense_one_over_all_offsets(causal):
    """Solved in P whitened offsets, without kernel or eigenvectors, the least loss and the answers are the same."""
    problem = whole_of(tiny_problem(causal))
    linear = linearised(problem, CUE)
    dense = linear.gradients.double().view(*linear.logits.shape, -1)
    labels, penalty = problem.train.labels, 0.5
    logits = torch.from_numpy(linear.logits)
    size, classes = dense.shape[-1], dense.shape[1]

    def objective(values):
        parameters = torch.tensor(values, requires_grad=True)
        weights, bias, log_scale = parameters[:size], parameters[size:-1], parameters[-1]
        z = log_scale.exp() * logits + dense @ weights + bias
        loss = functional.cross_entropy(z, labels, reduction="sum")
        loss = loss + penalty / 2 * weights @ weights + bias @ bias / 2 + log_scale**2 / 2
        loss.backward()
        return loss.item(), parameters.grad.numpy()

    options = {"maxiter": 2000, "gtol": 1e-9, "ftol": 1e-14}
    exact = minimize(objective, np.zeros(size + classes + 1), jac=True, method="L-BFGS-B", options=options)
    found = linear.fitted(range(len(labels)), problem, penalty)
    weights = linear.gradients.double().T @ torch.from_numpy(linear.back @ found.weights)
    own = np.concatenate([weights.numpy(), found.calibration.bias, [math.log(found.calibration.scale)]])
    assert objective(own)[0] == pytest.approx(exact.fun, rel=1e-6)
    assert np.allclose(own[size:], exact.x[size:], atol=1e-3)
    assert np.allclose(own[:size], exact.x[:size], atol=1e-3)


def test_without_known_logits_the_regression_is_scikit_learns():
    """Two classes, features of one class only: scikit-learn's logistic regression with the same penalty."""
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(40, 5)), generator.integers(0, 2, 40)
    features = np.stack([np.zeros_like(x), x], axis=1)
    found = logistic(features, np.zeros((40, 2)), labels, 0.7)
    # Two free biases with a penalty of 1/2 each are one bias with 1/4 of its square: a feature of sqrt(2 * 0.7).
    constant = np.full((40, 1), math.sqrt(2 * 0.7))
    expected = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=10000)
    expected.fit(np.hstack([x, constant]), labels)
    assert np.allclose(found.weights, expected.coef_[0, :5], atol=1e-4)
    bias = found.calibration.bias
    assert bias[1] - bias[0] == pytest.approx(expected.coef_[0, 5] * constant[0, 0], abs=1e-4)
    assert found.calibration.scale == pytest.approx(1)


def test_an_example_that_counts_twice_is_a_copy_of_it():
    generator = np.random.default_rng(1)
    features, logits = generator.normal(size=(12, 3, 4)), generator.normal(size=(12, 3))
    labels, counts = generator.integers(0, 3, 12), generator.integers(0, 4, 12)
    rows = np.repeat(np.arange(12), counts)
    weighed = logistic(features, logits, labels, 0.5, counts.astype(float))
    copied = logistic(features[rows], logits[rows], labels[rows], 0.5)
    assert np.allclose(weighed.weights, copied.weights, atol=1e-5)
    assert np.allclose(weighed.calibration.bias, copied.calibration.bias, atol=1e-5)


def test_held_out_answers_are_those_of_prompts_fitted_without_the_fold(causal):
    problem = whole_of(tiny_problem(causal))
    linear = linearised(problem, CUE)
    labels = problem.train.labels
    folds = stratified_folds(labels, 4, 1, texts_of(problem.train.context.examples))
    sizes = [len(fold.held_out) for fold in folds]
    by_linear, by_model = (own.split(sizes) for own in linear.held_out(problem, folds, 0.3))
    for number, fold in enumerate(folds):
        found = linear.fitted(fold.train, problem, 0.3)
        own = linear.candidate(found)
        with torch.no_grad():
            alone = own.logits(causal, problem.train.context.select(fold.held_out))
        assert torch.allclose(by_model[number], alone.double(), atol=1e-4)
        assert torch.allclose(by_linear[number], linear.answers(found, fold.held_out))
    by_linear, by_model = linear.held_out(problem, folds, 1e4)  # near the start the model is linear
    assert torch.allclose(by_linear, by_model, atol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_it_learns_and_its_held_out_score_is_of_the_penalty_that_ships(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    outcome = make_method("first-order").fit(problem)
    steps = [event for event in outcome.trace if event["phase"] == "first-order"]
    assert [event["penalty"] for event in steps] == [None, 0.1, 0.3, 1.0, 3.0, 10.0]
    allowed = [event for event in steps if event["dev_accuracy"] >= steps[0]["dev_accuracy"]]
    least = min(allowed, key=lambda event: event["dev_loss"])
    assert outcome.held_out == Score(least["dev_loss"], least["dev_accuracy"])
    if least["penalty"] is None:
        assert not outcome.is_tuned
    else:
        assert outcome.best.prompt.kind == "deep"
        pool = problem.pool
        assert score(backbone, outcome.best, pool).loss < score(backbone, outcome.start, pool).loss


def test_where_tuning_does_not_help_held_out_answers_the_untuned_prompt_ships(causal):
    """Labels of chance: a prompt fitted to them answers worse to others, at every penalty that lets it move."""
    problem = tiny_problem(causal)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (len(problem.train),), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    chance = replace(problem, train=replace(problem.train, golds=golds_of(labels)), dev=None)
    outcome = make_method("first-order", {"penalties": [0.01]}).fit(chance)
    assert outcome.trace[0]["dev_loss"] < outcome.trace[1]["dev_loss"]
    assert outcome.best is outcome.start


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("calibration", ["none", "fitted"])
def test_what_competes_is_the_untuned_prompt_itself(kind, calibration, request):
    """Its held-out score is that of the template as written with the calibration that would ship, folds apart."""
    backbone = request.getfixturevalue(kind)
    problem = whole_of(tiny_problem(backbone, "{text}{prompt}{mask}"))  # no words: tuned positions need filler
    outcome = make_method("first-order", {"calibration": calibration, "folds": 4}).fit(problem)
    data = problem.train
    folds = stratified_folds(data.labels, 4, problem.seed, texts_of(data.context.examples))
    losses = []
    for fold in folds:
        own = replace(problem, train=data.select(fold.train))
        untuned = starting_point(own, problem.initial_ids, CalibrationKind(calibration))
        held = data.select(fold.held_out)
        losses.append(score(backbone, untuned, held).loss * len(held))
    assert outcome.trace[0]["penalty"] is None
    assert outcome.trace[0]["dev_loss"] == pytest.approx(sum(losses) / len(data), abs=1e-4)
    if not outcome.is_tuned:
        assert outcome.held_out.loss == outcome.trace[0]["dev_loss"]


def test_labels_that_the_untuned_prompt_knows_by_itself_are_not_unlearnt(causal):
    """Texts labelled by the untuned prompt: what ships answers others no worse than it does."""
    texts = [f"{before} {word} {after}" for before in "the a it story plot".split() for word in "joy bore film".split()
             for after in "good bad never great".split()]  # fmt: skip
    task = make_task("{text}{prompt}{mask}")
    records = [Record({"text": text}, "negative") for text in texts]
    labelled = label_context(causal, task, task.examples(records))
    with torch.no_grad():
        logits = causal.class_logits(labelled.context, HardPrompt(()))
    truth = (logits - logits.mean(0)).argmax(1)
    data = replace(labelled, golds=golds_of(truth))
    for seed in range(3):
        rows = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        problem = Problem(causal, task, data.select(rows[:32]), None, seed=seed)
        outcome = make_method("first-order").fit(problem)
        rest = data.select(rows[32:])
        assert score(causal, outcome.best, rest).primary >= score(causal, outcome.start, rest).primary - 0.05


def test_a_class_head_is_refused(sequence):
    with pytest.raises(MethodError, match="needs a causal or masked language model"):
        make_method("first-order").fit(tiny_problem(sequence))


def test_what_does_not_fit_is_refused_before_it_is_computed(causal, monkeypatch):
    problem = tiny_problem(causal)
    monkeypatch.setattr("cuecraft.methods.first_order.memory_of", lambda device: 1000)
    with pytest.raises(MethodError, match="GiB; give fewer examples"):
        make_method("first-order").fit(problem)
    with pytest.raises(MethodError, match="penalties are positive"):
        make_method("first-order", {"penalties": [0.0]})


def test_where_the_time_ends_the_untuned_prompt_ships(causal):
    problem = replace(tiny_problem(causal), out_of_time=lambda reserve=0.0: True)
    outcome = make_method("first-order").fit(problem)
    assert outcome.best is outcome.start


def test_what_was_checked_before_the_time_ended_competes(causal):
    seen = []
    problem = tiny_problem(causal, report=lambda event: seen.append(event.get("penalty", "gradients")))
    problem = replace(problem, out_of_time=lambda reserve=0.0: 0.1 in seen, is_over=lambda: 0.1 in seen)
    outcome = make_method("first-order").fit(problem)
    assert [event["penalty"] for event in outcome.trace] == [None, 0.1]
    assert outcome.is_tuned == (outcome.trace[1]["dev_loss"] < outcome.trace[0]["dev_loss"])
