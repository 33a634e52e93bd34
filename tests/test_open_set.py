"""One of some classes or none: thresholds and scores by brute force and scikit-learn, and what rejects texts in use."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from conftest import TEXTS, examples
from cuecraft.artifact import calibration, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.objectives.open_set import fitted_least
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.task.answers import asked_answers
from cuecraft.task.answers.open_set import OpenSet, OpenSetOptions

SPACE = OpenSet(("bad", "cold", "joy"), (("bad",), ("cold",), ("joy",)), "oos", least=0.5)
NAMES = (*SPACE.labels, "oos")


def shares(seed, count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).double().mul(2).softmax(-1).numpy()


@examples(50)
@given(seed=st.integers(0, 999), golds=st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_the_least_confidence_has_the_best_mean_of_accuracy_and_recall(seed, golds):
    probabilities, golds = shares(seed, len(golds)), np.array(golds)
    least, is_out = fitted_least(probabilities, golds, 0.95), golds == 3

    def rated(least):
        chosen = np.where(probabilities.max(1) < least, 3, probabilities.argmax(1))
        parts = [np.mean(chosen[own] == golds[own]) for own in (is_out, ~is_out) if own.any()]
        return np.mean(parts)

    if is_out.any() and not is_out.all():
        assert rated(least) == pytest.approx(max(rated(own) for own in np.linspace(0, 1.001, 3000)), abs=1e-12)
    elif not is_out.any():
        assert np.mean(probabilities.max(1) >= least) >= 0.95
    else:
        assert least == 0


def test_scores_are_those_of_scikit_learn():
    golds = [0, 1, 2, 3, 3, 0, 1, 3]
    probabilities = shares(4, len(golds))
    decisions = SPACE.decide(probabilities, [None] * len(golds))
    chosen = [NAMES.index(own.value) for own in decisions]
    found, is_out = SPACE.measure(decisions, golds), np.array(golds) == 3
    assert {own.value for own in decisions} > {"oos"}
    assert found["accuracy"] == pytest.approx(accuracy_score(golds, chosen))
    assert found["in_scope_accuracy"] == pytest.approx(
        accuracy_score(np.array(golds)[~is_out], np.array(chosen)[~is_out])
    )
    assert found["out_of_scope_recall"] == pytest.approx(recall_score(is_out, np.array(chosen) == 3))
    assert found["auroc"] == pytest.approx(roc_auc_score(is_out, -probabilities.max(1)))
    assert list(SPACE.measure(decisions[:3], golds[:3])) == ["accuracy", "in_scope_accuracy"]
    assert list(SPACE.measure(decisions[3:5], golds[3:5])) == ["accuracy", "out_of_scope_recall"]
    for own, row in zip(decisions, probabilities, strict=True):
        assert own.confidence == pytest.approx(1 - row.max() if own.value == "oos" else row.max())


def test_a_text_of_no_class_loses_by_how_far_its_answer_is_from_flat():
    values = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [1.0, 2.0, 0.5]]).double().requires_grad_()
    golds = Golds(objective_of(SPACE), (3, 3, 1))
    losses = golds.losses(values).tolist()
    p = values.detach()[1].softmax(-1)
    assert losses[0] == pytest.approx(0, abs=1e-12)
    assert losses[1] == pytest.approx(float((torch.full((3,), 1 / 3).double() * (1 / 3 / p).log()).sum()))
    assert losses[2] == pytest.approx(-math.log(p[1]))
    assert torch.autograd.gradcheck(lambda own: golds.losses(own), [values])


def test_calibrations_and_heads_are_fitted_to_texts_of_a_class():
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)).double()
    golds = Golds(objective_of(SPACE), (0, 1, 2, 3, 0, 1, 2, 3, 3))
    own = [row for row, gold in enumerate(golds.values) if gold != 3]
    classes = torch.tensor([gold for gold in golds.values if gold != 3])
    assert golds.fitted(values) == calibration.fitted(values[own], classes)
    assert golds.tempered(values) == calibration.tempered(values[own], classes)
    head = golds.objective.fitted_head(values.float(), golds.values)
    model = LogisticRegression(max_iter=1000).fit(values[own].float().double().numpy(), classes.numpy())
    assert np.allclose(head.weight.numpy(), model.coef_, atol=1e-3)
    alone = Golds(objective_of(SPACE), (3, 3))
    assert alone.fitted(values[:2]) == golds.objective.plain()
    with pytest.raises(MethodError, match="no training example is of a class"):
        alone.objective.fitted_head(values[:2].float(), alone.values)
    with pytest.raises(MethodError, match="some are 'oos'"):
        _ = golds.classes


def rows(labels):
    return [Record({"text": text}, label) for (text, _), label in zip(TEXTS, labels, strict=True)]


LABELS = ("bad", "joy", "bad", "oos", "joy", "joy", "oos", "bad")


@pytest.mark.parametrize("kind", ["causal", "sequence"])
@pytest.mark.parametrize("method", ["linear-probe", "deep-cue", "contrastive", "auto"])
def test_it_is_tuned_and_answers_from_its_artifact_as_it_was_measured(method, kind, request, tmp_path):
    backbone = request.getfixturevalue(kind)
    records = rows(LABELS)
    task = make_task(backbone, records, answers=OpenSetOptions(reject="oos"))
    assert task.answers.labels == ("bad", "joy")
    problem = make_problem(backbone, task, records, records)
    options = {"deep-cue": {"epochs": 3}, "contrastive": {"epochs": 2, "folds": 2}, "auto": {"preset": "fast"}}
    made_by = make_method(method, options.get(method, {}))
    artifact = make_artifact(problem, made_by.fit(problem), made_by)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    entry = json.loads((tmp_path / "own" / "manifest.json").read_text())["task"]["answers"]
    assert (entry["kind"], entry["reject"]) == ("open-set", "oos")
    assert entry["least"] == loaded.task.answers.least == artifact.task.answers.least
    predictor = Predictor.of(loaded, backbone)
    probabilities = predictor.predict_proba([text for text, _ in TEXTS])
    wanted = ["oos" if row.max() < entry["least"] else ("bad", "joy")[int(row.argmax())] for row in probabilities]
    assert list(predictor.predict([text for text, _ in TEXTS])) == wanted


def test_without_rows_of_no_class_a_share_is_kept_and_nothing_is_the_answer(sequence):
    records = rows(("bad", "joy") * 4)
    task = make_task(sequence, records, answers=asked_answers({"kind": "open-set", "keep": 0.5}))
    problem = make_problem(sequence, task, records, records)
    method = make_method("linear-probe", {})
    predictor = Predictor.of(make_artifact(problem, method.fit(problem), method), sequence)
    found = [own.value for own in predictor.decide(predictor.examples([text for text, _ in TEXTS]))]
    assert 4 <= sum(value is not None for value in found) < 8
    with pytest.raises(DataError, match="'oos' is not one of the task's 2 classes"):
        task.answers.gold(Record({"text": "a"}, "oos"))


def test_prompts_that_answer_together_have_the_mean_threshold():
    others = [replace(SPACE, least=least) for least in (0.3, 0.7, 0.8)]
    assert others[0].joined(others[1:]).least == pytest.approx(0.6)
    assert SPACE.undecided.least == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": "much"}, "keep"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_options_are_one_line(given, message):
    with pytest.raises(MethodError, match=message) as caught:
        asked_answers({"kind": "open-set", **given})
    assert "\n" not in str(caught.value)


def test_the_answer_for_none_is_no_class():
    with pytest.raises(DataError, match="named twice"):
        OpenSet(("a", "b"), (("a",), ("b",)), "b")
    with pytest.raises(DataError, match="only one class"):
        OpenSet.of(rows(("a", "oos") * 4), OpenSetOptions(reject="oos"), None)


def test_the_command_rejects_and_says_how_well(run, causal_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**own.fields, "label": own.label}) + "\n" for own in rows(LABELS)))
    words = ("tune", data, "--dev", data, "--test", data, "--model", causal_folder, "--method", "linear-probe")
    code, out, err = run(*words, "--reject", "oos", "--out", "a", "--json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    assert {"test_accuracy", "test_in_scope_accuracy", "test_out_of_scope_recall", "test_auroc"} <= set(metrics)
    code, out, err = run("predict", "a", "--file", data, "--json")
    assert code == 0, err
    assert {row["value"] for row in json.loads(out)["predictions"]} <= {"bad", "joy", "oos"}
    code, _, err = run(*words, "--answers", "multilabel", "--reject", "oos", "--out", "b")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
