"""The estimator among scikit-learn's tools."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from conftest import LABELS, TEXTS
from cuecraft import CuecraftError, CuecraftWarning, PromptClassifier
from cuecraft.core.errors import LabelWordError, MethodError
from cuecraft.data.texts import as_records

X = [text for text, _ in TEXTS] * 2
Y = [LABELS[label] for _, label in TEXTS] * 2
FAST = {"epochs": 2}


@pytest.fixture
def classifier(causal):
    return PromptClassifier(causal, "prompt-tuning", method_options=FAST)


def test_fit_predict_score(classifier):
    fitted = classifier.fit(X, Y)
    assert fitted is classifier
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (16, 2)
    assert np.allclose(probabilities.sum(1), 1)
    assert list(fitted.classes_) == ["negative", "positive"]
    assert list(fitted.predict(X)) == [fitted.classes_[row] for row in probabilities.argmax(1)]
    assert fitted.score(X, Y) == np.mean(fitted.predict(X) == np.array(Y))
    assert fitted.trace_[0]["step"] == 0
    assert len(fitted.prompt_) > 0


def test_clone_keeps_the_parameters_and_not_the_fit(classifier):
    copy = clone(classifier.fit(X, Y))
    assert copy.get_params() == classifier.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)


def test_cross_validation_and_pipelines(causal):
    classifier = PromptClassifier(causal, "zero-shot", method_options={"calibration": "fitted"})
    assert cross_val_score(classifier, X, Y, cv=2).shape == (2,)
    assert cross_val_score(classifier, np.array(X), np.array(Y), cv=2, scoring="roc_auc").shape == (2,)
    shout = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    piped = make_pipeline(shout, classifier).fit(X, Y)
    plain = clone(classifier).fit([text.upper() for text in X], Y)
    assert np.array_equal(piped.predict_proba(X), plain.predict_proba([text.upper() for text in X]))


def test_a_dev_set_is_used_where_it_is_given(classifier):
    with_dev = classifier.fit(X[:4], Y[:4], dev=(X[4:], Y[4:]))
    assert with_dev.artifact_.manifest.data["dev"].rows == 12
    assert clone(classifier).fit(X, Y).artifact_.manifest.data["dev"].rows == 4


def test_classes_keep_their_type_and_order(causal):
    numbers = [{"negative": 10, "positive": 9}[label] for label in Y]
    words = {10: "bad", 9: "good"}
    classifier = PromptClassifier(causal, "zero-shot", label_words=words).fit(X, numbers)
    assert classifier.classes_.tolist() == [9, 10]
    assert set(classifier.predict(X)) <= {9, 10}
    records = as_records(X, [str(own) for own in numbers], classifier.task_.template.field_names)
    assert classifier.measured(records) == classifier.scores(X, numbers)["tuned"]
    assert classifier.measured(records)["accuracy"] == classifier.score(X, numbers)
    twin = PromptClassifier(causal, "zero-shot", label_words={"positive": "good", "negative": "bad"}).fit(X, Y)
    assert np.array_equal(classifier.predict_proba(X)[:, 0], twin.predict_proba(X)[:, 1])


def test_loaded_classes_keep_their_type(causal_folder, tmp_path):
    words = {0: "bad", 1: "good"}
    fitted = PromptClassifier(str(causal_folder), "zero-shot", label_words=words).fit(
        X, [int(y == "positive") for y in Y]
    )
    fitted.save(tmp_path / "a")
    assert PromptClassifier.load(tmp_path / "a").predict(X).tolist() == fitted.predict(X).tolist()
    with pytest.raises(NotFittedError, match="not kept in an artifact"):
        PromptClassifier.load(tmp_path / "a").accuracies(X, [1] * len(X))


def test_digits_as_classes_call_for_words(causal):
    with pytest.warns(CuecraftWarning, match="give it words"):
        PromptClassifier(causal, "zero-shot").fit(X, [int(y == "positive") for y in Y])


def test_texts_of_several_fields(causal):
    frame = pd.DataFrame({"premise": X, "hypothesis": X[::-1]})
    classifier = PromptClassifier(causal, "zero-shot").fit(frame, Y)
    assert classifier.task_.template.field_names == ("premise", "hypothesis")
    rows = frame.to_dict("records")
    assert np.array_equal(classifier.predict_proba(frame), classifier.predict_proba(rows))
    written = "{hypothesis} so {premise}{prompt: it was}{mask}"
    other = PromptClassifier(causal, "zero-shot", template=written).fit(frame, Y)
    assert not np.array_equal(other.predict_proba(frame), classifier.predict_proba(frame))


def test_one_column_may_have_any_name(causal):
    template = "{text}{prompt: it was}{mask}"
    named = PromptClassifier(causal, "zero-shot", template=template).fit(pd.DataFrame({"review": X}), Y)
    plain = PromptClassifier(causal, "zero-shot", template=template).fit(X, Y)
    assert np.array_equal(named.predict_proba(np.array(X)[:, None]), plain.predict_proba(X))


def test_accuracies_are_those_of_the_prompts_alone(classifier):
    fitted = classifier.fit(X, Y)
    found = fitted.accuracies(X, Y)
    assert found["tuned"] == fitted.score(X, Y)
    untuned = PromptClassifier(fitted.model, "zero-shot").fit(X, Y)
    assert found["untuned"] == untuned.score(X, Y)


@pytest.mark.parametrize(
    ("texts", "labels", "what"),
    [
        ([], [], "at least one"),
        (["a"], ["x", "y"], "1 texts but 2 labels"),
        (["a", float("nan")], ["x", "y"], "row 2: 'text' is missing"),
        (["a", None], ["x", "y"], "row 2: 'text' is missing"),
        (["a", 3], ["x", "y"], "row 2: 'text' is int"),
        (["a", " "], ["x", "y"], "row 2: 'text' is empty"),
        (["a", "b"], ["x", None], "row 2: the label is missing"),
        (["a", "b"], ["x", float("nan")], "row 2: the label is missing"),
        (["a", "b"], ["x", pd.NA], "row 2: the label is missing"),
        (["a", "b"], [pd.Timestamp("2024-01-01"), "x"], "row 1: the label is a Timestamp"),
        (["a", "b"], ["x", "x"], "only one class"),
        ("a", ["x"], "list of texts"),
    ],
)
def test_bad_data_is_told_in_one_line(causal, texts, labels, what):
    with pytest.raises(CuecraftError, match=what) as caught:
        PromptClassifier(causal, "zero-shot").fit(texts, labels)
    assert "\n" not in str(caught.value)


NO_ARGUMENTS = [
    *[("seed", bad) for bad in ("a", 1.5, None, True, [1])],
    *[("max_tokens", bad) for bad in ("5", 0, -1, 5.0, True, np.array([1, 2]))],
    *[("time_limit", bad) for bad in ("5", -1, float("nan"), [5], True)],
    *[("validation_fraction", bad) for bad in ("x", 0, 1, 2.0, float("nan"), None)],
    *[("template", bad) for bad in (3, b"{text}{mask}", ["{text}"])],
    *[("method_options", bad) for bad in ([1], "epochs=1", {1: 2})],
    *[("local_files_only", bad) for bad in ("no", None, 1)],
    *[("method", bad) for bad in (3, None, ["zero-shot"])],
    ("head", 3),
]


@pytest.mark.parametrize(("name", "bad"), NO_ARGUMENTS, ids=[f"{name}-{bad!r}" for name, bad in NO_ARGUMENTS])
def test_arguments_of_the_wrong_kind_are_refused_before_the_model_is_loaded(name, bad):
    one = clone(PromptClassifier("nowhere/at-all", "zero-shot")).set_params(**{name: bad})
    for call in (lambda: one.fit(X, Y), lambda: one.fit_unlabeled(X, LABELS)):
        with pytest.raises(MethodError, match=f"^{name} is .*; give ") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_arguments_too(causal):
    own = {"seed": np.int64(3), "max_tokens": np.int32(90), "time_limit": np.float32(60), "local_files_only": np.False_}
    plain = {name: value.item() for name, value in own.items()}
    found, expected = (
        PromptClassifier(causal, "zero-shot", validation_fraction=np.float64(0.25), **given).fit(X, Y)
        for given in (own, plain)
    )
    assert np.array_equal(found.predict_proba(X), expected.predict_proba(X))
    assert found.artifact_.manifest == expected.artifact_.manifest


IN_ORDER = [
    ["bad", ("good", "great")],
    np.array(["bad", "good"]),
    np.array(["bad", "good"], dtype=object)[:, None],
    np.array([["bad", "awful"], ["good", "great"]]),
    pd.Series(["bad", "good"], dtype="string"),
    pd.Series({"positive": "good", "negative": "bad"}),
    pd.DataFrame({"word": ["bad", "good"]}),
    pd.DataFrame({"word": ["good", "bad"]}, index=["positive", "negative"]),
    pa.array(["bad", "good"]),
    {"negative": np.array(["bad"]), "positive": pd.Series(["good"])},
]


@pytest.mark.parametrize("words", IN_ORDER, ids=lambda words: type(words).__name__)
def test_label_words_may_be_held_by_anything_with_an_order(causal, words):
    one = PromptClassifier(causal, "zero-shot", label_words=words).fit(X, Y)
    assert [own[0] for own in one.task_.verbalizer.words] == ["bad", "good"]
    unlabeled = PromptClassifier(causal, label_words=words, method_options={"max_texts": 2, "variants": 0})
    assert unlabeled.fit_unlabeled(X, LABELS).task_.verbalizer == one.task_.verbalizer


NO_WORDS = [
    [1, 2],
    np.array([1, 2]),
    {"positive": 1, "negative": "bad"},
    {"positive": None, "negative": "bad"},
    [None, "good"],
    {"positive": b"good", "negative": "bad"},
    [["bad", ["x"]], "good"],
    {"negative": ["bad", 3], "positive": "good"},
    {"negative": {"bad": 1}, "positive": "good"},
    {"negative": {"bad"}, "positive": "good"},
    {"negative": "bad", "positive": "\ud800"},
    pd.Series(["bad", None]),
    pd.Series(["bad", "good"], index=["negative", "negative"]),
    pd.DataFrame({"negative": ["bad"], "positive": ["good"]}),
    np.array("bad"),
    np.array([[["bad"], ["good"]]]),
    b"bad",
    3,
    pd.Series(["bad", "good", "fine"]),
]


@pytest.mark.parametrize("words", NO_WORDS, ids=repr)
def test_label_words_that_are_none_are_refused_before_the_model_is_loaded(words):
    with pytest.raises(LabelWordError) as caught:
        PromptClassifier("nowhere/at-all", "zero-shot", label_words=words).fit(X, Y)
    assert "\n" not in str(caught.value)


def test_a_time_limit_ends_the_work(causal):
    classifier = PromptClassifier(causal, "prompt-tuning", time_limit=0, method_options={"epochs": 100})
    with pytest.warns(CuecraftWarning, match="time.limit"):
        classifier.fit(X, Y)
    assert len([e for e in classifier.trace_ if e["phase"] == "prompt-tuning"]) <= 2


def test_a_shuffled_series_keeps_texts_and_labels_together(classifier):
    frame = pd.DataFrame({"text": X, "label": Y}).sample(frac=1, random_state=0)
    by_series = classifier.fit(frame["text"], frame["label"])
    by_lists = clone(classifier).fit(frame["text"].tolist(), frame["label"].tolist())
    assert by_series.artifact_.manifest == by_lists.artifact_.manifest


def test_an_interrupted_fit_leaves_the_classifier_as_it_was(classifier):
    before = classifier.fit(X, Y).predict_proba(X)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.fit(X, [{"negative": "low", "positive": "high"}[label] for label in Y], report=stop)
    assert list(classifier.classes_) == ["negative", "positive"]
    assert np.array_equal(classifier.predict_proba(X), before)


def test_a_long_prompt_keeps_room_for_itself_in_long_texts(causal):
    options = {"prompt_length": 60, "epochs": 1}
    classifier = PromptClassifier(causal, "prompt-tuning", method_options=options).fit(X, Y)
    with pytest.warns(CuecraftWarning, match="were cut"):
        assert classifier.predict_proba(["a joy from start to finish " * 50]).shape == (1, 2)


def test_a_model_that_answers_nan_is_refused(byte_tokenizer):
    from conftest import make_causal

    model = make_causal(byte_tokenizer)
    broken = PromptClassifier((model, byte_tokenizer), "zero-shot").fit(X, Y)
    broken.backbone_.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(CuecraftError, match="NaN"):
        broken.predict(X)
