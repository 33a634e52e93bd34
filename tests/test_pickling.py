"""Fitted estimators in pickles, copies, and scikit-learn's meta-estimators."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from conftest import LABELS, TEXTS, make_causal
from cuecraft import PromptClassifier
from cuecraft.api.family import PromptFamily
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import ArtifactError, BackboneError, LabelWordError
from cuecraft.methods.train.multitask import MultitaskTuning

X = [text for text, _ in TEXTS] * 2
Y = [LABELS[label] for _, label in TEXTS] * 2
WORDS = {"negative": "bad", "positive": "good"}


def dumped(one, tmp_path):
    joblib.dump(one, tmp_path / "one.joblib")
    return [pickle.loads(pickle.dumps(one)), joblib.load(tmp_path / "one.joblib"), copy.deepcopy(one)]


@pytest.fixture(scope="module")
def fitted(causal_folder):
    options = {"epochs": 1, "prompt_length": 2}
    return PromptClassifier(str(causal_folder), "prompt-tuning", label_words=WORDS, method_options=options).fit(X, Y)


def test_a_fitted_classifier_answers_alike_out_of_a_pickle(fitted, tmp_path):
    for again in dumped(fitted, tmp_path):
        assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))
        assert again.get_params() == fitted.get_params()
        assert again.classes_.tolist() == fitted.classes_.tolist()
        assert again.padding_ == fitted.padding_
        assert again.save(tmp_path / "again") == fitted.save(tmp_path / "first")
        assert again.backbone_ is fitted.backbone_  # loaded once in a process, and nothing of it in the pickle
    assert len(pickle.dumps(fitted)) < 50_000


@pytest.mark.parametrize("method", ["linear-probe", "lora"])
def test_heads_and_tuned_weights_are_in_the_pickle(method, causal_folder):
    options = {"epochs": 1} if method == "lora" else {}
    one = PromptClassifier(str(causal_folder), method, label_words=WORDS, method_options=options).fit(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(one)).predict_proba(X), one.predict_proba(X))


@pytest.fixture(scope="module")
def encoder_folder(sequence, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    sequence.model.save_pretrained(folder)
    sequence.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("again", [False, True], ids=["fitted", "loaded"])
def test_what_answers_by_another_model_is_unpickled_with_that_one(again, causal_folder, encoder_folder, tmp_path):
    options = {"encoder": encoder_folder}
    one = PromptClassifier(str(causal_folder), "embedding-probe", label_words=WORDS, method_options=options).fit(X, Y)
    if again:
        one.save(tmp_path / "probe")
        one = PromptClassifier.load(tmp_path / "probe")
    twin = pickle.loads(pickle.dumps(one))
    for found in (twin, pickle.loads(pickle.dumps(twin)), copy.deepcopy(twin)):
        assert np.array_equal(found.predict_proba(X), one.predict_proba(X))
        assert found.get_params() == one.get_params()
        assert getattr(found, "padding_", None) == getattr(one, "padding_", None)
        assert found.backbone_.name == encoder_folder
    if not again:
        assert np.array_equal(clone(twin).fit(X, Y).predict_proba(X), one.predict_proba(X))


def test_an_unfitted_one_keeps_its_parameters(causal_folder, tmp_path):
    plain = PromptClassifier(causal_folder, "zero-shot", seed=3)
    for again in dumped(plain, tmp_path):
        assert again.get_params() == plain.get_params()
        assert not hasattr(again, "artifact_")
    shared = PromptClassifier(load_backbone(str(causal_folder)), "zero-shot")
    again = pickle.loads(pickle.dumps(shared))
    assert again.model == str(causal_folder)
    assert np.array_equal(again.fit(X, Y).predict_proba(X), shared.fit(X, Y).predict_proba(X))


def test_a_model_in_memory_can_be_copied_but_not_pickled(causal, byte_tokenizer, tmp_path):
    pair = (make_causal(byte_tokenizer), byte_tokenizer)
    for model in (causal, pair):
        one = PromptClassifier(model, "zero-shot", label_words=WORDS).fit(X, Y)
        for case in (one, clone(one), PromptEnsemble([one])):
            with pytest.raises(ArtifactError, match=r"given in memory .*save\(folder\)") as caught:
                pickle.dumps(case)
            assert "\n" not in str(caught.value)
        twin = copy.deepcopy(one)
        assert twin.model is model
        assert np.array_equal(twin.predict_proba(X), one.predict_proba(X))
        twin.set_params(label_words=None).fit(X, ["no" if y == "negative" else "yes" for y in Y])
        assert one.classes_.tolist() == ["negative", "positive"]


def test_a_pickle_is_checked_as_a_folder_is(fitted, causal_folder, tmp_path):
    state = fitted.__getstate__()
    for change, error in (
        ({"files": state["files"] | {"prompt.safetensors": b""}}, "prompt.safetensors is damaged"),
        ({"files": {"../out.txt": b"x"}}, "'../out.txt'"),
        ({"answering": state["answering"] | {"model": str(tmp_path / "nowhere")}}, "nowhere"),
    ):
        with pytest.raises((ArtifactError, BackboneError), match=error):
            PromptClassifier.__new__(PromptClassifier).__setstate__(state | change)
    assert not (tmp_path / "out.txt").exists()


def test_ensembles_and_families(fitted, causal_folder, causal, tmp_path):
    ensemble = PromptEnsemble([fitted, clone(fitted).set_params(seed=1).fit(X, Y)])
    for again in dumped(ensemble, tmp_path):
        assert np.array_equal(again.predict_proba(X), ensemble.predict_proba(X))
    family = PromptFamily(str(causal_folder), MultitaskTuning(epochs=1, prompt_length=2), seed=2)
    assert pickle.loads(pickle.dumps(family)).options == family.options
    tasks = {"one": (X, Y), "two": (X, Y[::-1])}
    family.fit(tasks, label_words=dict.fromkeys(tasks, WORDS))
    for again in dumped(family, tmp_path):
        for name in tasks:
            own = family.classifier(name)
            assert np.array_equal(again.classifier(name).predict_proba(X), own.predict_proba(X))
            assert np.array_equal(pickle.loads(pickle.dumps(own)).predict_proba(X), own.predict_proba(X))
        again.add("three", X, Y, label_words=WORDS)
        assert set(family.artifacts) == set(tasks)
    with pytest.raises(ArtifactError, match="given in memory"):
        pickle.dumps(PromptFamily(causal))


def test_estimators_that_number_the_classes_take_words_in_order(causal):
    def make(words):
        return PromptClassifier(causal, "zero-shot", label_words=words)

    named, listed = make(WORDS), make(["bad", ["good"]])
    expected = named.fit(X, Y).predict_proba(X)
    assert np.array_equal(listed.fit(X, Y).predict_proba(X), expected)
    numbers = [int(y == "positive") for y in Y]
    assert np.array_equal(clone(listed).fit(X, numbers).predict_proba(X), expected)
    assert cross_val_predict(listed, X, Y, cv=2, method="predict_proba").shape == (16, 2)
    column = np.array(X, dtype=object)[:, None]
    voting = VotingClassifier([("a", listed), ("b", listed)], voting="soft").fit(X, Y)
    assert np.allclose(voting.predict_proba(X), expected)
    assert set(StackingClassifier([("a", listed)], LogisticRegression(), cv=2).fit(X, Y).predict(X)) <= set(LABELS)
    bagging = BaggingClassifier(listed, n_estimators=2, max_samples=1.0, random_state=0).fit(column, Y)
    assert set(bagging.predict(column)) <= set(LABELS)

    with pytest.raises(LabelWordError, match=r"classes are 0, 1; where scikit-learn has numbered .* list of words"):
        make(WORDS).fit(X, numbers)
    with pytest.raises(LabelWordError, match="words for 3 classes, but there are 2: negative, positive"):
        make(["bad", "good", "fine"]).fit(X, Y)
    with pytest.raises(LabelWordError, match="label_words is"):
        make({"bad", "good"}).fit(X, Y)
