"""`auto`: folds that start from words of their own, and who answers together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from auto_parts import (
    KINDS,
    ONE,
    TINY,
    Given,
    answers,
    assert_same_prompt,
    auto,
    by_hand,
    deep,
    flipped,
    planned,
    probabilities,
    problem_of,
    tempered_by_hand,
    trainings_of,
    words,
)
from conftest import TEXTS, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt, load_artifact
from cuecraft.methods.auto import crossfit
from cuecraft.methods.auto.choice import _Choice
from cuecraft.methods.auto.contenders import FirstOrderCue, ProbedWords, Together, WordsAlone, probed
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.held_out import HeldOut, stratified_folds, texts_of

HEADS = (0.01, 1.0, 100.0)
WEIGHTS = torch.tensor([3.0, 0.5, 0.25, 2.0, 0.25, 1.0, 0.5, 0.5])


def whole_of(problem, weighs=False):
    pool = replace(problem.pool, weights=WEIGHTS) if weighs else problem.pool
    return replace(problem, train=pool, dev=None)


def folds_of(whole, count=4):
    return stratified_folds(whole.train.labels, count, whole.seed, texts_of(whole.train.context.examples))


def logistic(whole, features, rows, inverse_penalty):
    """Return a function from features to probabilities: scikit-learn's fit to some rows of RMS 1."""
    x, unit = features[rows], np.sqrt((features[rows] ** 2).mean())
    weights = None if whole.train.weights is None else whole.train.weights[rows].double().numpy()
    model = LogisticRegression(C=inverse_penalty, max_iter=1000)
    model.fit(x / unit, whole.train.labels[rows].numpy(), sample_weight=weights)
    return lambda others: model.predict_proba(others / unit)


def features_of(whole, ids):
    """Return features, one text at a time."""
    backbone, context = whole.backbone, whole.train.context
    with torch.no_grad():
        rows = [backbone.features(context.select([row]), HardPrompt(ids)) for row in range(len(context))]
    return torch.cat(rows).double().numpy()


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_weights_of_examples_enter_class_heads(kind, request):
    """With the penalty of least held-out loss, that counts all alike."""
    problem = problem_of(kind, request)
    whole, start = whole_of(problem, weighs=True), words(problem)
    folds, features = folds_of(whole), features_of(whole, start.token_ids)
    found = probed(whole, start, folds, HEADS)
    labels = [int(whole.train.labels[row]) for fold in folds for row in fold.held_out]
    expected = {
        strength: np.concatenate(
            [logistic(whole, features, fold.train, strength)(features[fold.held_out]) for fold in folds]
        )
        for strength in HEADS
    }
    losses = {strength: -np.log(own[range(len(labels)), labels]).mean() for strength, own in expected.items()}
    assert found.inverse_penalty == min(losses, key=losses.get)
    assert np.allclose(found.held_out.values.exp().numpy(), expected[found.inverse_penalty], atol=2e-3)
    plain = probed(whole_of(problem), start, folds, (found.inverse_penalty,))
    assert not torch.allclose(found.held_out.values, plain.held_out.values, atol=1e-2)
    on_all = logistic(whole, features, range(len(features)), found.inverse_penalty)(features)
    with torch.no_grad():
        answered = found.made().logits(problem.backbone, whole.train.context).softmax(-1)
    assert np.allclose(answered.numpy(), on_all, atol=2e-3)


def test_held_out_labels_do_not_touch_a_class_head(causal):
    problem = tiny_problem(causal)
    whole = whole_of(problem)
    folds = folds_of(whole)
    held = folds[0].held_out
    found, again = (probed(own, words(problem), folds, (1.0,)) for own in (whole, flipped(problem, held)))
    assert torch.equal(found.held_out.values[: len(held)], again.held_out.values[: len(held)])
    assert not torch.equal(found.held_out.values[len(held) :], again.held_out.values[len(held) :])


@pytest.mark.parametrize("training", KINDS)
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_each_fold_is_trained_from_its_own_start_and_all_ship(kind, training, monkeypatch, request):
    """Starts of different lengths, which share no pass, as the folds' numbers take them in turn."""
    monkeypatch.setattr(crossfit, "SHARES", (1.0,))
    problem = problem_of(kind, request)
    ids = {"a": (31, 32), "b": (33, 34, 35), "c": (36,)}
    starts = tuple(replace(words(problem, name), token_ids=own) for name, own in ids.items())
    trainings = trainings_of(problem, folds=4)
    configuration = replace(KINDS[training](problem), starts=starts)
    found = trainings.cross_fit(configuration)
    assert found.name.endswith(", a, b, c")
    expected, held = [], []
    for number, fold in enumerate(trainings._folds):
        alone = replace(configuration, starts=(starts[number % 3],))
        prompt, correction = by_hand(alone, problem.backbone, problem.pool.select(fold.train))
        assert_same_prompt(found.candidates[number].prompt, prompt, 1e-5)
        context = problem.pool.context.select(fold.held_out)
        held.append(probabilities(problem.backbone, context, [prompt], [correction]))
        expected.append((prompt, correction))
    assert torch.allclose(found.held_out.values.exp(), torch.cat(held), atol=1e-4)
    made, context = found.made(), problem.pool.context
    assert len(made.prompts) == found.members == 4
    with torch.no_grad():
        answered = made.logits(problem.backbone, context).double().softmax(-1)
    prompts, calibrations = zip(*expected, strict=True)
    assert torch.allclose(answered, probabilities(problem.backbone, context, prompts, calibrations), atol=1e-4)
    assert found.words().prompt.token_ids == (31, 32)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_all_kinds_together_answer_what_is_made_of_them(kind, request):
    """Trained prompts, a head and words: the mean over all prompts, each with the temperature of its contender."""
    problem = problem_of(kind, request)
    whole, start = whole_of(problem), words(problem)
    trained = trainings_of(problem, folds=4).cross_fit(deep(problem))
    head = probed(whole, start, folds_of(whole), HEADS)
    parts = [trained, head]
    if kind != "sequence":
        parts.append(WordsAlone("words", trained.held_out, 0.0, start, whole))
    found = Together.of(parts, problem.seed)
    made = found.shipped(problem.in_time)
    assert len(made.prompts) == found.members == sum(part.members for part in parts)
    prompts, calibrations = tempered_by_hand(parts)
    context = problem.pool.context
    with torch.no_grad():
        answered = made.logits(problem.backbone, context).double().softmax(-1)
    assert torch.allclose(answered, probabilities(problem.backbone, context, prompts, calibrations), atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_what_answers_together_is_read_back_from_its_artifact(kind, monkeypatch, request, tmp_path):
    planned(monkeypatch, replace(TINY, soft=(), cues=0))
    monkeypatch.setattr(HeldOut, "is_near", lambda *_: True)
    monkeypatch.setattr("cuecraft.methods.evidence.Evidence.is_better", True)
    problem = problem_of(kind, request)
    outcome = auto().fit(problem)
    assert len(outcome.best.prompts) == (4 if kind != "sequence" else 5)  # heads on features of unit length, too
    make_artifact(problem, outcome, auto()).save(tmp_path / "made")
    loaded = PromptClassifier.of(load_artifact(tmp_path / "made"), problem.backbone)
    best = outcome.best
    expected = probabilities(problem.backbone, problem.pool.context, best.prompts, best.calibrations)
    assert np.allclose(loaded.predict_proba([text for text, _ in TEXTS]), expected.numpy(), atol=1e-5)


def test_near_is_within_standard_errors_of_the_paired_difference():
    generator = np.random.default_rng(5)
    told = set()
    for _ in range(200):
        labels = torch.from_numpy(generator.integers(0, 2, 12))
        one, other = (answers(torch.from_numpy(generator.uniform(0.05, 0.95, 12)), labels) for _ in range(2))
        losses = [[-float(own.values[row, label]) for row, label in enumerate(labels)] for own in (one, other)]
        gaps = [first - second for first, second in zip(*losses, strict=True)]
        error = np.std(gaps, ddof=1) / math.sqrt(12)
        for errors in (1.0, 2.0):
            assert one.is_near(other, errors) == (sum(gaps) / 12 <= errors * error)
        told.add((one.is_near(other, 1.0), one.is_near(other, 2.0)))
    assert told == {(False, False), (False, True), (True, True)}


def brute_joined(rows, most):
    """Return who joins, given `(name, mean gap to the best, standard error of the gap, prompts, whether it can join)`.

    The best that can join, and after it, in order of loss, whoever is near it and leaves no more prompts than `most`.
    """
    can = sorted((row for row in rows if row[4]), key=lambda row: row[1])
    joined, count = [], 0
    for name, gap, error, members, _ in can:
        near = gap - can[0][1] <= (2.0 if members > 1 else 1.0) * error
        if near and count + members <= most:
            joined.append(name)
            count += members
    return joined if len(joined) > 1 else []


LABELS = torch.tensor([0, 1] * 8)


def lossy(name, base, gap, spread, members, can_join=True):
    """Return a contender whose losses are those of the best plus a gap that differs from text to text."""
    changes = gap + spread * torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    return Given(name, answers((-(base + changes)).exp(), LABELS), 1.0, members, can_join)


@pytest.mark.parametrize("most", [1, 2, 4, 5, 8])
def test_whoever_is_near_the_best_joins_while_as_many_prompts_may_ship(most, causal, monkeypatch):
    monkeypatch.setattr(HeldOut, "recalibrated", lambda self, seed: self)
    base, error = 0.5, 0.2 * math.sqrt(16 / 15) / 4  # of a spread of 0.2 over 16 texts
    table = [
        ("best", 0.0, 0.0, 1, True),
        ("within two, one prompt", 1.5 * error, 0.2, 1, True),
        ("within two, four prompts", 1.6 * error, 0.2, 4, True),
        ("within one", 0.5 * error, 0.2, 1, True),
        ("beyond two", 2.5 * error, 0.2, 2, True),
        ("cannot join", 0.1 * error, 0.2, 1, False),
        ("near, two prompts", 0.8 * error, 0.2, 2, True),
    ]
    own = _Choice(tiny_problem(causal), auto(prompts=most))
    own.contenders = [lossy(name, base, gap, spread, members, can) for name, gap, spread, members, can in table]
    own._join()
    expected = brute_joined([(name, gap, error, members, can) for name, gap, _, members, can in table], most)
    joined = [one for one in own.contenders if isinstance(one, Together)]
    assert [[part.name for part in one.parts] for one in joined] == ([expected] if expected else [])
    if joined:
        assert own._ranked()[0] is joined[0]  # it may be as good as the best, and is steadier
        assert own.trace[-1]["tried"] == joined[0].name
    singles = [one.name for one in own._ranked() if not isinstance(one, Together)]
    assert singles == [row[0] for row in sorted(table, key=lambda row: row[1])]


def test_together_they_come_first_only_where_they_are_near_the_best(causal, monkeypatch):
    monkeypatch.setattr(HeldOut, "recalibrated", lambda self, seed: self)
    own = _Choice(tiny_problem(causal), auto())
    best = lossy("best", 0.2, 0.0, 0.0, 1, can_join=False)
    parts = [lossy("a", 0.9, 0.0, 0.0, 1), lossy("b", 0.9, 0.01, 0.4, 1)]
    own.contenders = [*parts, best]
    own._join()
    assert [one.name for one in own._ranked()] == ["best", "together: a; b", "a", "b"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [(["own", "cue"], ["own words"]), (["cue", "own"], ["own words", "cue"]), (["cue"], ["own words", "cue"])],
)
def test_heads_and_first_order_cues_are_fitted_over_the_users_own_words_and_better_ones(
    order, expected, causal, monkeypatch
):
    planned(monkeypatch, replace(ONE, first_order=1, deep=()))
    problem, contenders = tiny_problem(causal), []
    cue = replace(words(problem, "cue", differs=True), token_ids=(33, 34, 35))
    starts = {"own": words(problem, "own words"), "cue": cue}
    monkeypatch.setattr(Untrained, "starts", lambda self: [starts[name] for name in order])
    plain = _Choice._add
    monkeypatch.setattr(_Choice, "_add", lambda self, one: contenders.append(one) or plain(self, one))
    auto().fit(problem)
    for kind in (ProbedWords, FirstOrderCue):
        assert [one.start.name for one in contenders if isinstance(one, kind)] == expected
