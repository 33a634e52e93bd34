"""`PromptRegressor`: scikit-learn's regressor over the same code as the classifier."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score

import cuecraft
from conftest import TEXTS
from cuecraft import PromptClassifier, PromptRegressor
from cuecraft.core.errors import ArtifactError, DataError, MethodError

WORDS = {"values": {"bad": 1, "dull": 2, "good": 4, "great": 5}}
STARS = (5, 1, 4, 2, 5, 1, 4, 2)
ONLY = [text for text, _ in TEXTS]


def regressor(model, **options):
    return PromptRegressor(model, "zero-shot", answers=WORDS, **options)


def test_numbers_are_predicted_scored_saved_and_loaded(causal_folder, tmp_path):
    found = regressor(str(causal_folder)).fit(ONLY, np.array(STARS)[:, None], dev=(ONLY, list(STARS)))
    numbers = found.predict(ONLY)
    assert numbers.dtype == np.float64
    assert ((numbers >= 1) & (numbers <= 5)).all()
    assert found.predict_proba(ONLY) @ (1, 2, 4, 5) == pytest.approx(numbers)
    intervals = found.predict_interval(ONLY)
    assert intervals.shape == (8, 2)
    assert ((intervals[:, 0] <= numbers) & (numbers <= intervals[:, 1])).all()
    assert found.score(ONLY, STARS) == pytest.approx(r2_score(STARS, numbers))
    weights = np.arange(8)
    assert found.score(ONLY, STARS, weights) == pytest.approx(r2_score(STARS, numbers, sample_weight=weights))
    assert found.score(ONLY, [7, *STARS[1:]]) == pytest.approx(r2_score([7, *STARS[1:]], numbers))
    scores = found.scores(ONLY, list(STARS))
    assert scores["tuned"]["mean_absolute_error"] == pytest.approx(np.abs(numbers - STARS).mean())
    assert scores["tuned"]["interval_coverage"] >= scores["untuned"]["interval_coverage"] - 1
    found.save(tmp_path / "own")
    again = PromptRegressor.load(tmp_path / "own", model=causal_folder)
    assert np.array_equal(again.predict_interval(ONLY), intervals)
    assert np.array_equal(pickle.loads(pickle.dumps(again)).predict(ONLY), numbers)
    assert PromptClassifier.load(tmp_path / "own", model=causal_folder).predict(ONLY).tolist() == numbers.tolist()


def test_it_is_a_regressor_of_scikit_learn(causal):
    made = regressor(causal)
    assert is_regressor(made)
    assert not is_classifier(made)
    assert is_classifier(PromptClassifier(causal))
    assert clone(made).get_params() == made.get_params()
    assert made.get_params().keys() == PromptClassifier(causal).get_params().keys()
    scores = cross_val_score(regressor(causal, method_options={"calibration": "none"}), ONLY * 2, STARS * 2, cv=2)
    assert scores.shape == (2,)
    assert "PromptRegressor" in dir(cuecraft)
    with pytest.raises(NotFittedError, match="this PromptRegressor is not fitted"):
        made.predict(ONLY)


def test_many_numbers_are_learnt_by_words_for_quantiles(sequence):
    numbers = np.random.default_rng(0).exponential(size=24)
    found = PromptRegressor(sequence, "linear-probe").fit(ONLY * 3, numbers)
    assert [own[0] for own in found.task_.answers.words] == ["lowest", "low", "medium", "high", "highest"]
    assert numbers.min() <= found.predict(ONLY).min() <= found.predict(ONLY).max() <= numbers.max()


@pytest.mark.parametrize(
    ("numbers", "answers", "error", "message"),
    [
        (["x", *STARS[1:]], None, DataError, "row 1: 'x' is no number; give one, such as 3.5"),
        ([None, *STARS[1:]], None, DataError, "row 1: the number is missing"),
        (STARS[1:], None, DataError, "8 texts but 7 labels"),
        (STARS, {"range": (1, 4)}, DataError, "the number 5 is not in the range 1 to 4; fix it"),
        (STARS, {"values": {"bad": 1, "good": 4}}, DataError, "the number 5 is not in the range 1 to 4; fix it"),
        ([3] * 8, None, DataError, "only one number"),
        (STARS, "multilabel", MethodError, "answers is 'multilabel'; a regressor takes options of ordinal answers"),
        (STARS, {"kind": "labels"}, MethodError, "a regressor takes options of ordinal answers"),
        (STARS, {"scale": 2}, MethodError, "no option 'scale'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(causal, numbers, answers, error, message):
    with pytest.raises(error, match=message) as found:
        PromptRegressor(causal, "zero-shot", answers=answers).fit(ONLY, list(numbers))
    assert "\n" not in str(found.value)


def test_an_artifact_of_labels_is_no_regressor(causal, tmp_path):
    labels = ["yes" if label else "no" for _, label in TEXTS]
    PromptClassifier(causal, "zero-shot").fit(ONLY, labels).save(tmp_path / "labels")
    with pytest.raises(ArtifactError, match="answers are of kind labels, not numbers; load it with PromptClassifier"):
        PromptRegressor.load(tmp_path / "labels", model=causal)
