"""Paired comparison on held-out examples, and the verdict."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from conftest import golds_of
from cuecraft.methods.evidence import compare_paired, judge, strength_of


def answers(probabilities):
    """Log-probabilities of two classes, of the probability of class 1."""
    p = np.asarray(probabilities, dtype=float)
    return np.log(np.stack([1 - p, p], axis=1))


def compared(tuned, untuned, labels):
    golds = golds_of(labels)
    return compare_paired(*(golds.scores(torch.from_numpy(own)) for own in (tuned, untuned)))


LABELS = np.array([1, 1, 1, 0, 0, 0, 1, 0])
TUNED = answers([0.9, 0.8, 0.7, 0.2, 0.1, 0.6, 0.95, 0.3])
UNTUNED = answers([0.6, 0.4, 0.8, 0.4, 0.6, 0.7, 0.5001, 0.45])


def losses(found):
    return np.array([-row[label] for row, label in zip(found, LABELS, strict=True)])


def test_the_permutation_test_is_that_of_all_sign_changes():
    difference = losses(UNTUNED) - losses(TUNED)
    means = [np.mean(difference * signs) for signs in itertools.product((1, -1), repeat=8)]
    as_extreme = sum(abs(mean) >= abs(difference.mean()) - 1e-12 for mean in means) / len(means)
    found = compared(TUNED, UNTUNED, LABELS)
    assert found.p_loss == pytest.approx(as_extreme, abs=1e-9)


def test_the_interval_is_the_t_interval_of_the_mean_difference():
    difference = losses(UNTUNED) - losses(TUNED)
    half = stats.t.ppf(0.975, 7) * difference.std(ddof=1) / math.sqrt(8)
    found = compared(TUNED, UNTUNED, LABELS)
    assert found.gain_interval == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert found.untuned_loss - found.loss == pytest.approx(difference.mean())


def test_the_mcnemar_test_is_exact():
    found = compared(TUNED, UNTUNED, LABELS)
    # By hand: the tuned prompt errs on row 6, the untuned one on rows 2, 5 and 6.
    assert (found.only_tuned_right, found.only_untuned_right) == (2, 0)
    assert found.p_accuracy == pytest.approx(2 * 0.5**2)
    assert (found.accuracy, found.untuned_accuracy) == (7 / 8, 5 / 8)


def test_equal_answers_are_no_evidence():
    found = compared(TUNED, TUNED, LABELS)
    assert (found.p_loss, found.p_accuracy) == (1.0, 1.0)
    assert not found.is_better
    assert strength_of(found.p_loss) == "hardly any"


def test_more_rows_of_the_same_make_the_evidence_stronger():
    few = compared(TUNED, UNTUNED, LABELS)
    many = compared(np.tile(TUNED, (20, 1)), np.tile(UNTUNED, (20, 1)), np.tile(LABELS, 20))
    assert many.p_loss < 0.001 < few.p_loss
    assert strength_of(many.p_loss) == "strong"


def test_the_tuned_prompt_ships_only_with_less_loss_and_no_less_accuracy():
    better = judge(compared(TUNED, UNTUNED, LABELS), {"zero-shot": 0.5}, 0.875, 0.01)
    assert better.ships == "tuned"
    assert "p = " in better.reason
    worse = judge(compared(UNTUNED, TUNED, LABELS), {"zero-shot": 0.5}, 0.875, 0.01)
    assert worse.ships == "untuned"
    assert "log-loss did not fall" in worse.reason


def test_less_loss_with_less_accuracy_does_not_ship():
    sure_but_wrong_once = answers([0.99, 0.99, 0.99, 0.01, 0.01, 0.01, 0.99, 0.51])
    timid_and_right = answers([0.51, 0.51, 0.51, 0.49, 0.49, 0.49, 0.51, 0.49])
    found = compared(sure_but_wrong_once, timid_and_right, LABELS)
    assert found.loss < found.untuned_loss
    verdict = judge(found, {}, 1.0, 0.01)
    assert verdict.ships == "untuned"
    assert "accuracy fell" in verdict.reason


def test_an_error_is_shown_without_the_minus_that_makes_it_a_score():
    sure_but_wrong_once = answers([0.99, 0.99, 0.99, 0.01, 0.01, 0.01, 0.99, 0.51])
    timid_and_right = answers([0.51, 0.51, 0.51, 0.49, 0.49, 0.49, 0.51, 0.49])
    found = replace(compared(sure_but_wrong_once, timid_and_right, LABELS), measure="neg_mean_absolute_error")
    verdict = judge(replace(found, accuracy=-1.5, untuned_accuracy=-1.25), {"zero-shot": -1.25}, -1.25, 0.01)
    assert "mean absolute error 1.250 -> 1.500: mean absolute error rose" in verdict.reason
    assert verdict.remark.startswith("zero-shot alone has 1.250")
    assert "(1.250)" in verdict.remark


def test_the_remark_names_the_cheapest_that_is_near_the_best():
    evidence = compared(TUNED, UNTUNED, LABELS)
    untuned = {"zero-shot": 0.80, "batch calibration": 0.87, "calibrated": 0.875}
    assert "batch calibration alone" in judge(evidence, untuned, 0.875, 0.01).remark
    assert "zero-shot alone" in judge(evidence, untuned, 0.875, 0.1).remark
    assert judge(evidence, {"zero-shot": 0.5}, 0.875, 0.01).remark is None


def test_the_document_is_json_ready():
    import json

    document = judge(compared(TUNED, UNTUNED, LABELS), {}, 1.0, 0.01).document()
    assert json.loads(json.dumps(document)) == document


def test_the_strength_is_that_after_correction_for_all_that_competed():
    evidence = compared(TUNED, UNTUNED, LABELS)
    alone, among = (judge(evidence, {}, 1.0, 0.01, count).reason for count in (1, 6))
    assert f"p = {evidence.p_loss:.3g}" in alone
    assert f"p = {min(1.0, 6 * evidence.p_loss):.3g} after correction for the 6 that competed" in among
