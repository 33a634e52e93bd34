"""Weights of training examples: they stand for repeated rows, and enter every loss that a method minimises."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from sklearn.ensemble import BaggingClassifier

from conftest import LABELS, TEXTS, golds_of, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt, SoftPrompt, calibration
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.data.texts import repeated, weighed
from cuecraft.methods import METHODS
from cuecraft.methods.gradients import accumulate_gradients
from cuecraft.methods.problem import CalibrationKind, score
from cuecraft.methods.untuned import fit_head, starting_point

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
COUNTS = [1, 2, 1, 3, 1]  # of the five texts of a problem
QUICK = {
    "prompt-tuning": {"epochs": 3},
    "deep-cue": {"epochs": 3},
    "prefix-tuning": {"epochs": 3},
    "lora": {"epochs": 3},
    "autoprompt": {"steps": 3, "candidates": 4},
    "straight-through": {"steps": 3},
    "hybrid": {"search.steps": 2, "tune.epochs": 2},
    "linear-probe": {},
}


def two(backbone):
    """Return a problem with weights, and one whose rows are repeated as often."""
    problem = tiny_problem(backbone)
    weights = torch.tensor(COUNTS, dtype=torch.float32) * len(COUNTS) / sum(COUNTS)
    rows = [row for row, count in enumerate(COUNTS) for _ in range(count)]
    return replace(problem, train=replace(problem.train, weights=weights)), replace(
        problem, train=problem.train.select(rows)
    )


def test_scores_heads_and_calibrations_are_those_of_repeated_rows(causal, sequence):
    weighted, many = two(causal)
    start = starting_point(many, many.initial_ids, CalibrationKind.NONE)
    found, expected = (score(causal, start, own.train) for own in (weighted, many))
    assert (found.loss, found.primary) == pytest.approx((expected.loss, expected.primary))
    assert found != score(causal, start, replace(weighted.train, weights=None))
    logits, others = (causal.class_logits(own.train.context, start.prompt) for own in (weighted, many))
    # The penalty of a calibration is that of the rows there are, so it is turned off to compare.
    fitted = calibration.fitted(logits, weighted.train.labels, 0.0, weighted.train.weights)
    assert fitted.scale == pytest.approx(calibration.fitted(others, many.train.labels, 0.0).scale, rel=1e-2)
    losses = weighted.train.scores(torch.stack([logits, -logits])).mean_losses
    assert torch.allclose(losses, many.train.scores(torch.stack([others, -others])).mean_losses)
    weighted, many = two(sequence)
    plain = replace(weighted, train=replace(weighted.train, weights=None))
    heads = [fit_head(own, HardPrompt(())) for own in (weighted, plain)]
    assert not torch.allclose(heads[0].weight, heads[1].weight)


def test_gradients_are_those_of_repeated_rows(causal):
    gradients = []
    for problem in two(causal):
        vectors = SoftPrompt(HardPrompt(problem.initial_ids).vectors(causal.embed)).vectors(causal.embed)
        vectors = vectors.detach().clone().requires_grad_()
        start = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)
        accumulate_gradients(
            causal, [(lambda v=vectors, s=start: replace(s, prompt=SoftPrompt(v)), problem.train)], [vectors]
        )
        gradients.append(vectors.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_weights_stay_with_their_examples(causal):
    weighted, _ = two(causal)
    part = weighted.train.select([3, 1])
    assert part.weights.tolist() == weighted.train.weights[[3, 1]].tolist()
    assert weighted.pool.weights.tolist() == [*weighted.train.weights.tolist(), 1.0, 1.0, 1.0]
    assert tiny_problem(causal).pool.weights is None
    half = golds_of([0, 1]).scores(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([3.0, 1.0])).mean
    assert half.primary == 0.75


@pytest.mark.parametrize("method", QUICK)
def test_equal_weights_are_none_rows_of_no_weight_are_left_out_and_others_matter(causal, method):
    def fitted(texts, labels, weights=None):
        own = PromptClassifier(causal, method, method_options=QUICK[method])
        return own.fit(texts, labels, dev=(X, Y), sample_weight=weights)

    plain = fitted(X, Y)
    assert fitted(X, Y, [0.5] * 8).artifact_.manifest.artifact_sha256 == plain.artifact_.manifest.artifact_sha256
    some = fitted([*X, X[0]], [*Y, Y[1]], [*[2.0] * 8, 0.0])
    assert np.array_equal(some.predict_proba(X), plain.predict_proba(X))
    other = fitted(X, Y, pd.Series([9.0, *[1.0] * 7], index=range(8, 0, -1)))
    assert other.trace_[0]["train_loss"] != plain.trace_[0]["train_loss"]
    assert other.artifact_.manifest.data["train"] != plain.artifact_.manifest.data["train"]


def test_what_trains_on_no_loss_takes_weights_as_copies_or_refuses(causal):
    classifier = PromptClassifier(causal, "zero-shot", method_options={"calibration": "fitted"})
    copies = [row for row, count in enumerate([0, 2, 1, 3, 1, 1, 1, 1]) for _ in range(count)]
    many = classifier.fit([X[row] for row in copies], [Y[row] for row in copies], dev=(X, Y)).predict_proba(X)
    found = classifier.fit(X, Y, dev=(X, Y), sample_weight=[0, 2, 1, 3, 1, 1, 1, 1.0]).predict_proba(X)
    assert np.array_equal(found, many)
    for name, kind in METHODS.items():
        if not kind.weighs_examples:
            with pytest.raises(MethodError, match=f"{name} trains on no loss"):
                PromptClassifier(causal, name).fit(X, Y, sample_weight=[0.5, *[1] * 7])
    assert {name for name, kind in METHODS.items() if not kind.weighs_examples} == {"zero-shot", "in-context", "auto"}
    with pytest.raises(MethodError, match="searches words without sample_weight"):
        PromptClassifier(causal, "prompt-tuning", label_words="auto").fit(X, Y, sample_weight=[0.5, *[1] * 7])


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ([1] * 7, "8 texts but 7 weights"),
        ([-1, *[1] * 7], "row 1: the weight '-1'"),
        ([1, float("nan"), *[1] * 6], "row 2: the weight 'nan'"),
        ([1, float("inf"), *[1] * 6], "row 2: the weight 'inf'"),
        ([1, None, *[1] * 6], "row 2: the weight 'None'"),
        (["1"] * 8, "row 1: the weight '1'"),
        ([0] * 8, "all weights in sample_weight are 0"),
        ([10**400, *[1] * 7], "row 1: the weight '1000000"),
        ([0.0 if label == Y[0] else 1.0 for label in Y], f"class '{Y[0]}' has weight 0"),
        (0, "all weights"),
        (np.ones((8, 2)), r"the weights have the shape \(8, 2\)"),
        ("1" * 8, "the weights are a str"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(causal, weights, what):
    for method in ("prompt-tuning", "zero-shot"):
        with pytest.raises(DataError, match=what) as caught:
            PromptClassifier(causal, method).fit(X, Y, sample_weight=weights)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [list, np.array, np.float32, pd.Series, pyarrow.array, iter, torch.tensor])
def test_weights_may_be_in_any_container(kind):
    values = [3.0, 0.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0]
    weights = np.array(values, dtype=np.float32)[:, None] if kind is np.float32 else kind(values)
    found = weighed(records(), weights)
    assert [record.fields["text"] for record in found] == [text for text, value in zip(X, values, strict=True) if value]
    assert [record.weight for record in found] == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3, 4 / 3, 2 / 3])


@pytest.mark.filterwarnings("ignore:the answers are named")  # a bag calls them 0 and 1
@pytest.mark.parametrize("method", ["zero-shot", "linear-probe"])
def test_a_bag_of_classifiers_draws_rows_by_their_weights(causal, method):
    assert "sample_weight" in inspect.signature(PromptClassifier.fit).parameters
    bag = BaggingClassifier(PromptClassifier(causal, method), n_estimators=2, random_state=0)
    assert bag.fit(np.array(X * 2)[:, None], Y * 2).predict(np.array(X)[:, None]).shape == (8,)


@pytest.mark.parametrize("weights", [[1] * 7, [-1, *[1] * 7], [0] * 8, ["1"] * 8, [float("nan"), *[1] * 7]])
def test_score_checks_weights_as_fit_does(causal, weights):
    classifier = PromptClassifier(causal, "zero-shot").fit(X, Y)
    with pytest.raises(DataError, match="weight"):
        classifier.score(X, Y, sample_weight=weights)
    assert classifier.score(X, Y, sample_weight=iter([1] * 8)) == classifier.score(X, Y)


def test_weights_whose_sum_overflows_keep_their_ratios():
    rows = [Record({"text": text}, label) for text, label in zip(X, Y, strict=True)]
    great = [own.weight for own in weighed(rows, [1e308, *[5e307] * 7])]
    assert great == pytest.approx([own.weight for own in weighed(rows, [2, *[1] * 7])])
    with pytest.raises(MethodError, match="in all at most"):
        repeated(rows, [1e300, *[1] * 7], "auto")
