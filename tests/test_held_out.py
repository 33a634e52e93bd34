"""The folds of `auto`, what is answered to their held-out parts, and calibration by it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import golds_of, tiny_problem
from cuecraft.artifact import Calibration, HardPrompt, calibration
from cuecraft.methods.held_out import HeldOut, fold_problem, stratified_folds, untuned_answers
from cuecraft.methods.problem import CalibrationKind
from cuecraft.methods.untuned import starting_point


@given(st.lists(st.integers(0, 2), min_size=6, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_a_stratified_partition(labels, count, seed):
    folds = stratified_folds(torch.tensor(labels), count, seed)
    rarest = min(labels.count(label) for label in set(labels))
    if rarest < 2:
        assert folds == []
        return
    assert len(folds) == min(count, rarest)
    held = sorted(row for fold in folds for row in fold.held_out)
    assert held == list(range(len(labels)))
    for fold, label in itertools.product(folds, set(labels)):
        own = [labels[row] for row in fold.held_out].count(label)
        assert abs(own - labels.count(label) / len(folds)) < 1
        assert sorted((*fold.train, *fold.held_out)) == list(range(len(labels)))


@pytest.mark.parametrize("kind", list(CalibrationKind))
def test_untuned_answers_are_those_of_a_fit_on_each_fold_alone(kind, causal):
    problem = tiny_problem(causal)
    pool = problem.pool
    folds = stratified_folds(pool.labels, 2, 0)
    ids = problem.initial_ids
    found = untuned_answers(problem, pool, [HardPrompt(ids[:1]), HardPrompt(ids)], folds)(1, kind)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        candidate = starting_point(replace(own, dev=None), ids, kind)
        with torch.no_grad():
            expected.append(candidate.logits(causal, own.dev.context).double().log_softmax(-1))
    assert torch.allclose(found.values, torch.cat(expected), atol=1e-5)
    assert found.golds.classes.tolist() == [int(pool.labels[row]) for fold in folds for row in fold.held_out]


def test_untuned_answers_of_a_class_head_are_those_of_a_fit_on_each_fold_alone(sequence):
    problem = tiny_problem(sequence)
    pool = problem.pool
    folds = stratified_folds(pool.labels, 2, 0)
    found = untuned_answers(problem, pool, [HardPrompt(())], folds)(0, CalibrationKind.NONE)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        with torch.no_grad():
            expected.append(starting_point(own, (), CalibrationKind.NONE).logits(sequence, own.dev.context).double())
    assert torch.allclose(found.values, torch.cat(expected).log_softmax(-1), atol=1e-5)


def test_joined_examples_have_the_logits_of_each_part(causal):
    problem = tiny_problem(causal)
    prompt = HardPrompt(problem.initial_ids)
    with torch.no_grad():
        whole = causal.class_logits(problem.pool.context, prompt)
        parts = [causal.class_logits(part.context, prompt) for part in (problem.train, problem.dev)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_recalibrated_answers_are_each_calibrated_by_the_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 12)
    sure = 6 * torch.randn(24, 2, generator=generator, dtype=torch.float64)
    sure[range(24), labels] += 2.0
    found = HeldOut(sure.log_softmax(-1), golds_of(labels), (12, 12))
    again = found.recalibrated(3)
    for fold in stratified_folds(labels, 16, 3):
        own = calibration.tempered(found.values[fold.train], labels[fold.train])
        expected = own.apply(found.values[fold.held_out]).log_softmax(-1)
        assert torch.allclose(again.values[fold.held_out], expected)
    assert again.score.loss < found.score.loss


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.floats(0.1, 4), st.floats(0.1, 4))
def test_calibrations_one_after_the_other_are_one(bias, first_scale, second_scale):
    first, second = Calibration(tuple(bias[:2]), first_scale), Calibration(tuple(bias[2:]), second_scale)
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64)
    assert torch.allclose(first.then(second).apply(logits), second.apply(first.apply(logits)))


def test_copies_of_a_text_stay_in_one_fold():
    labels = torch.tensor([0, 1] * 10)
    texts = [f"text {n // 4}" for n in range(20)]
    for fold in stratified_folds(labels, 4, 0, texts):
        assert not {texts[row] for row in fold.train} & {texts[row] for row in fold.held_out}
    twice = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]  # two texts of each class, three times
    assert len(stratified_folds(torch.tensor([0] * 6 + [1] * 6), 3, 0, twice)) == 2
    assert stratified_folds(torch.tensor([0] * 6 + [1] * 3), 3, 0, twice[:9]) == []  # one class has one text only
    apart = [f"text {n}" for n in range(20)]
    assert stratified_folds(labels, 4, 0, apart) == stratified_folds(labels, 4, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=24), st.integers(2, 5))
def test_every_fold_leaves_each_class_something_to_learn_and_holds_each_row_out_once(rows, count):
    labels, texts = [label for label, _ in rows], [text for _, text in rows]
    folds = stratified_folds(torch.tensor(labels), count, 0, texts)
    assert len(folds) <= count
    for fold in folds:
        assert {labels[row] for row in fold.train} == set(labels)
        assert fold.held_out
        assert not {texts[row] for row in fold.train} & {texts[row] for row in fold.held_out}
    if folds:
        assert sorted(row for fold in folds for row in fold.held_out) == list(range(len(rows)))
    distinct = [len({text for label, text in rows if label == own}) for own in set(labels)]
    if min(distinct) < 2:
        assert not folds
    elif len(set(rows)) == len(set(texts)):  # no text stands under two labels
        assert len(folds) == min(count, *distinct)


def test_a_temperature_is_the_best_one_by_brute_force():
    generator = torch.Generator().manual_seed(2)
    logits = 5 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=generator)
    found = calibration.tempered(logits, labels, strength=1.0)
    assert found.bias == (0.0, 0.0, 0.0)

    def objective(scale):
        return float(torch.nn.functional.cross_entropy(scale * logits, labels)) + np.log(scale) ** 2 / 80

    grid = np.exp(np.linspace(-5, 1, 4001))
    assert found.scale == pytest.approx(grid[np.argmin([objective(scale) for scale in grid])], rel=2e-3)
