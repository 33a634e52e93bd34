"""Sets of labels: metrics and heads as scikit-learn's, thresholds by brute force, reading, strata, tuning."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from conftest import TEXTS
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt
from cuecraft.artifact.calibration import HeadFit
from cuecraft.backbone import FeatureScale
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record, read_records
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.objectives.multilabel import fitted_thresholds
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.registry import METHODS, make_method
from cuecraft.task import Example, Task, Template, Verbalizer
from cuecraft.task.answers import AnswerColumns, asked_answers
from cuecraft.task.answers.multilabel import Multilabel, MultilabelOptions

LABELS = ("a", "b", "c", "d")
SPACE = Multilabel(LABELS, tuple((label,) for label in LABELS))


def drawn(count, seed=0, size=4):
    random = np.random.default_rng(seed)
    truth = random.random((count, size)) < np.linspace(0.15, 0.6, size)
    values = 2 * truth - 1 + random.normal(size=(count, size)) + np.linspace(-1, 1, size)
    return truth, torch.tensor(values)


def sets_of(truth):
    return [tuple(np.flatnonzero(row).tolist()) for row in truth]


def test_metrics_are_scikit_learns():
    truth, values = drawn(60)
    truth[0] = False
    decisions = SPACE.decide(SPACE.probabilities(values.numpy()), [None] * 60)
    binarizer = MultiLabelBinarizer(classes=LABELS)
    found = binarizer.fit_transform([own.value for own in decisions])
    expected = {
        "example_f1": f1_score(truth, found, average="samples", zero_division=1),
        "micro_f1": f1_score(truth, found, average="micro"),
        "macro_f1": f1_score(truth, found, average="macro"),
        "exact_match": np.mean(
            [set(own.value) == {LABELS[n] for n in gold} for own, gold in zip(decisions, sets_of(truth), strict=True)]
        ),
    }
    assert SPACE.measure(decisions, sets_of(truth)) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2])
def test_metrics_of_few_classes_are_those_of_binary_scores(size):
    """Scikit-learn takes one column for classes and not for sets."""
    space = Multilabel(LABELS[:size], tuple((label,) for label in LABELS[:size]))
    truth, values = drawn(40, size=size)
    decisions = space.decide(space.probabilities(values.numpy()), [None] * 40)
    found = np.array([[label in own.value for label in space.labels] for own in decisions])
    each = [f1_score(truth[:, number], found[:, number]) for number in range(size)]
    measured = space.measure(decisions, sets_of(truth))
    assert measured["macro_f1"] == pytest.approx(np.mean(each))
    assert measured["micro_f1"] == pytest.approx(f1_score(truth.ravel(), found.ravel()))
    assert measured["exact_match"] == pytest.approx((truth == found).all(1).mean())
    golds = Golds(objective_of(space), tuple(sets_of(truth)))
    assert golds.scores(values).mean.primary == pytest.approx(measured["example_f1"])


def test_an_empty_set_answered_by_an_empty_one_is_right_and_a_class_without_texts_has_no_macro_f1():
    nothing = SPACE.decide(np.full((2, 4), 0.2), [None] * 2)
    assert [own.value for own in nothing] == [[], []]
    assert nothing[0].confidence == pytest.approx(0.8**4)
    found = SPACE.measure(nothing, [(), (1,)])
    assert found == {"example_f1": 0.5, "micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 0.5}


def brute_force(probabilities, truth):
    """Return the best mean F1 of texts over every way that one threshold can cut."""
    cuts = [*np.unique(probabilities), 2.0]
    rated = []
    for cut in cuts:
        found = probabilities >= cut
        rows = zip(found, truth, strict=True)
        rated.append(np.mean([2 * (f & t).sum() / (f.sum() + t.sum()) if f.any() or t.any() else 1.0 for f, t in rows]))
    return max(rated)


@pytest.mark.parametrize("seed", range(8))
def test_one_threshold_for_all_is_the_best_and_each_label_moves_to_its_own_with_its_texts(seed, monkeypatch):
    truth, values = drawn(12, seed)
    truth[:, 3] = seed % 2  # alike in all texts
    probabilities = SPACE.probabilities(values.numpy())
    found = fitted_thresholds(probabilities, truth.astype(float))
    shared = found[3]
    chosen = probabilities >= shared
    reached = f1_score(truth, chosen, average="samples", zero_division=1)
    assert reached == pytest.approx(brute_force(probabilities, truth))
    monkeypatch.setattr("cuecraft.methods.objectives.multilabel._SHRINKAGE", 0.0)
    own = fitted_thresholds(probabilities, truth.astype(float))
    for label in range(3):
        column, right = probabilities[:, label], truth[:, label]
        if not right.any() or right.all():
            assert own[label] == pytest.approx(shared)
            continue
        best = max(f1_score(right, column >= cut, zero_division=0) for cut in column)
        assert f1_score(right, column >= own[label]) == pytest.approx(best)
        share = right.sum() / (right.sum() + 20)
        odds = [np.log(p / (1 - p)) for p in (own[label], shared, found[label])]
        assert odds[2] == pytest.approx(share * odds[0] + (1 - share) * odds[1])


def test_scores_of_texts_are_at_the_thresholds():
    truth, values = drawn(40)
    golds = Golds(objective_of(SPACE), tuple(sets_of(truth)))
    decided = golds.decided(values)
    answers = decided.objective.answers
    assert answers.undecided == SPACE
    assert answers.thresholds != SPACE.thresholds
    decisions = answers.decide(answers.probabilities(values.numpy()), [None] * 40)
    rows = [
        f1_score(
            t[None], MultiLabelBinarizer(classes=LABELS).fit_transform([own.value]), average="samples", zero_division=1
        )
        for t, own in zip(truth, decisions, strict=True)
    ]
    assert decided.scores(values).primary.tolist() == pytest.approx(rows)
    assert decided.scores(values).mean.primary > golds.scores(values).mean.primary
    assert torch.equal(decided.losses(values), golds.losses(values))


@pytest.mark.parametrize("scale", list(FeatureScale))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_head_is_scikit_learns_one_against_the_rest(scale, is_weighted):
    truth, _ = drawn(50)
    random = np.random.default_rng(1)
    features = random.normal(size=(50, 6)) + truth @ random.normal(size=(4, 6))
    weights = random.integers(1, 4, size=50).astype(float) if is_weighted else np.ones(50)
    golds = Golds(objective_of(SPACE), tuple(sets_of(truth)))
    fit = HeadFit(3.0, torch.tensor(weights) if is_weighted else None, scale)
    head = golds.objective.fitted_head(torch.tensor(features), golds.values, fit)
    read = features / np.linalg.norm(features, axis=1, keepdims=True) if scale is FeatureScale.UNIT else features
    copies = np.repeat(np.arange(50), weights.astype(int))  # a weight is so many copies
    model = OneVsRestClassifier(LogisticRegression(C=3.0, max_iter=1000, tol=1e-8)).fit(read[copies], truth[copies])
    own = read @ head.weight.numpy().T + head.bias.numpy()
    assert np.allclose(SPACE.probabilities(own), model.predict_proba(read), atol=2e-3)


def test_a_label_alike_in_all_texts_has_its_rate_and_no_weight():
    golds = [(0,), (0, 1), (0,)]
    head = objective_of(SPACE).fitted_head(torch.randn(3, 5), golds)
    assert not head.weight[[0, 2, 3]].any()
    assert head.weight[1].any()
    assert head.bias[[0, 2]].sigmoid().tolist() == pytest.approx([3.5 / 4, 0.5 / 4])


def test_a_calibration_is_a_scale_and_log_odds_that_labels_share_but_for_what_they_deviate():
    truth, values = drawn(400, size=4)
    wide = objective_of(SPACE).fitted(values - 8, sets_of(truth))  # words are rarer than labels
    near = objective_of(SPACE).fitted(values, sets_of(truth))
    assert wide.scale == pytest.approx(near.scale, rel=1e-2)
    assert np.allclose(wide.apply((values - 8).numpy()), near.apply(values.numpy()), atol=0.1)
    rates = SPACE.probabilities(near.apply(values.numpy())).mean(0)
    assert np.allclose(rates, truth.mean(0), atol=0.01)


def test_sets_are_read_of_lists_strings_and_objects_of_python(tmp_path):
    rows = [{"text": "x", "labels": ["b", "a", "b"]}, {"text": "y", "labels": []}, {"text": "z", "labels": [1, True]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_records(path, label_column=Multilabel.in_rows())
    assert [record.label for record in found] == [("b", "a"), (), ("1", "True")]
    path = tmp_path / "a.csv"
    path.write_text("text,labels\nx,a; b\ny,\nz,a;\n")
    separated = Multilabel.in_rows(AnswerColumns(separator=";"))
    assert [record.label for record in read_records(path, label_column=separated)] == [("a", "b"), (), ("a",)]
    for value in ({"b"}, np.array(["b"]), ("b",)):
        assert Multilabel.read("row 1", {"label": value}, AnswerColumns())[0] == ("b",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a;b", r"row 1: column 'labels' is one string \('a;b'\), and no separator is given; give a list"),
        (None, "row 1: column 'labels' has no labels; give a list, \\[\\] for none, or remove the row"),
        (3, "row 1: column 'labels' is a int; give a list of labels"),
        ({"a": 1}, "row 1: column 'labels' is a dict; give a list of labels"),
        (["a", None], "row 1: a label in the list is missing"),
        ([["a"]], "row 1: the label is a list"),
    ],
)
def test_what_is_no_set_is_refused_in_one_line(value, message):
    with pytest.raises(DataError, match=message) as error:
        Multilabel.read("row 1", {"labels": value}, AnswerColumns())
    assert "\n" not in str(error.value)


def test_the_space_has_the_labels_of_examples_or_those_asked_for():
    records = [Record({"text": "x"}, own) for own in (("b_2", "a"), (), ("c",))]
    found = Multilabel.of(records, MultilabelOptions(), None)
    assert found == Multilabel(("a", "b_2", "c"), (("a",), ("b 2",), ("c",)))
    asked = asked_answers({"kind": "multilabel", "classes": "c,a"})
    assert Multilabel.of(records, asked, {"a": "x", "c": ["y", "z"]}).words == (("y", "z"), ("x",))
    with pytest.raises(DataError, match="no row has a label"):
        Multilabel.of(records[1:2], MultilabelOptions(), None)
    with pytest.raises(DataError, match="label 'e' is not one of the task's 4 classes \\(a, b, c, d\\)"):
        SPACE.gold(Record({}, ("a", "e")))
    with pytest.raises(DataError, match="2 thresholds for 4 classes"):
        Multilabel(LABELS, SPACE.words, thresholds=(0.5, 0.5))


def test_strata_are_the_rarest_labels_and_none_is_too_small_to_be_held_out():
    golds = [*[(0,)] * 20, *[(0, 1)] * 9, *[(0, 1, 2)] * 2, *[()] * 7, (0, 3)]
    strata = SPACE.strata(golds)
    assert strata == [*[0] * 20, *[1] * 9, *[strata[29]] * 2, *[4] * 7, strata[29]]
    assert strata[29] in (1, 4)
    assert min(strata.count(own) for own in strata) >= 5
    for order in itertools.permutations(range(4)):
        found = SPACE.strata([(n,) for n in order])
        assert sorted(map(found.count, found)) == [2, 2, 2, 2]


def test_scores_of_label_words_are_relative_to_their_mean(causal):
    """Before a calibration: those of the same label words as classes, less their mean."""
    task = Task(
        Template("{text}{prompt: it was}{mask}"),
        Multilabel(("a", "b", "c"), (("bad",), ("dull", "a bore"), ("great",))),
    )
    labels = replace(task, answers=Verbalizer(task.answers.labels, task.answers.words))
    examples = [Example({"text": text}) for text, _ in TEXTS]
    with torch.no_grad():
        own, plain = (
            causal.class_logits(context, HardPrompt(context.renderer.prompt_ids))
            for context in (causal.context(examples, task), causal.context(examples, labels))
        )
        rows = [
            (causal.ready(HardPrompt(causal.renderer(task).prompt_ids), task), piece)
            for piece in causal.context(examples, task).pieces
        ]
        mixed = torch.stack(causal.mixed_logits(rows))
    assert torch.allclose(own, plain - plain.mean(1, keepdim=True), atol=1e-5)
    assert torch.allclose(mixed, own, atol=1e-4)


def test_several_spaces_decide_by_the_mean_of_their_thresholds():
    one, other = (Multilabel(LABELS, SPACE.words, thresholds=(least,) * 4) for least in (0.2, 0.4))
    assert one.joined([other]).thresholds == pytest.approx((0.3,) * 4)
    assert one.joined([SPACE]).thresholds == pytest.approx((0.35,) * 4)
    assert SPACE.joined([SPACE]) is SPACE


SETS = (("bad",), ("bad", "long"), (), ("long",), ("bad",), (), ("bad", "long"), ("long",))


@pytest.mark.parametrize("method", ["linear-probe", "deep-cue", "lora", "full", "auto"])
@pytest.mark.parametrize("backbone", ["causal", "sequence"])
def test_methods_learn_sets(method, backbone, request):
    records = [Record({"text": text}, own) for (text, _), own in zip(TEXTS, SETS, strict=True)]
    model = request.getfixturevalue(backbone)
    task = make_task(model, records, answers=MultilabelOptions())
    problem = make_problem(model, task, records, records, seed=0)
    options = {} if method in ("linear-probe", "auto") else {"epochs": 3}
    made = make_method(method, options | ({"preset": "fast"} if method == "auto" else {}))
    outcome = made.fit(problem)
    artifact = make_artifact(problem, outcome, made)
    answers = artifact.task.answers
    assert len(answers.thresholds) == 2 or (method == "auto" and not outcome.is_tuned)
    name = "held_out_example_f1" if method == "auto" else "dev_example_f1"
    assert 0 <= artifact.manifest.metrics[name] <= 1


SINGLE = [Record({"text": text}, ("bad",) if "bad" in own else ()) for (text, _), own in zip(TEXTS, SETS, strict=True)]


@pytest.mark.parametrize("method", sorted({*METHODS} - {"linear-probe", "embedding-probe", "contrastive", "auto"}))
def test_label_words_of_a_single_class_are_refused(method, causal):
    """They are compared with their mean, so that each text would score 0."""
    problem = make_problem(causal, make_task(causal, SINGLE, answers=MultilabelOptions()), SINGLE, SINGLE)
    message = f"^{method} compares label words of classes, and 'bad' is the only class; name a second class, or use"
    with pytest.raises(MethodError, match=message):
        make_method(method, {}).fit(problem)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("linear-probe", {}),
        ("deep-cue", {"verbalizer": "fitted", "epochs": 2}),
        ("lora", {"loss": "contrastive", "epochs": 2}),
        ("auto", {"preset": "fast"}),
    ],
)
def test_a_single_class_is_learnt_by_a_class_head(method, options, causal):
    problem = make_problem(causal, make_task(causal, SINGLE, answers=MultilabelOptions()), SINGLE * 2, SINGLE)
    outcome = make_method(method, options).fit(problem)
    values = outcome.best.logits(causal, problem.train.context)
    assert outcome.best.prompt.head is not None or method == "auto"
    assert not any("first-order" in row.name for row in outcome.tried)
    assert all("vectors of names" in row.name for row in outcome.tried if "deep" in row.name)
    if outcome.best.prompt.head is not None:
        assert float(values.detach().std()) > 0


def test_the_classifier_takes_and_gives_what_scikit_learn_does(sequence):
    """Lists of lists, sets, and an indicator matrix, dense or sparse; a column without a label stays one."""
    texts = [text for text, _ in TEXTS]
    matrix = np.array([["bad" in own, False, "long" in own] for own in SETS]).astype(int)
    found = PromptClassifier(sequence, "linear-probe", answers="multilabel").fit(texts, matrix, dev=(texts, matrix))
    assert found.classes_.tolist() == ["0", "1", "2"]
    answers = found.predict(texts)
    assert answers.shape == (8, 3)
    least = found.artifact_.task.answers.least
    assert np.array_equal(answers, found.predict_proba(texts) >= least)
    assert found.score(texts, matrix) == pytest.approx(f1_score(matrix, answers, average="samples", zero_division=1))
    assert found.scores(texts, matrix)["tuned"]["micro_f1"] == pytest.approx(f1_score(matrix, answers, average="micro"))
    sparse = PromptClassifier(sequence, "linear-probe", answers="multilabel")
    sparse.fit(texts, csr_matrix(matrix), dev=(texts, csr_matrix(matrix)))
    assert np.array_equal(sparse.predict_proba(texts), found.predict_proba(texts))
    named = pd.DataFrame(matrix[:, [0, 2]], columns=["bad", "long"])
    by_name = PromptClassifier(sequence, "linear-probe", answers="multilabel").fit(texts, named, dev=(texts, named))
    lists = PromptClassifier(sequence, "linear-probe").fit(
        texts, list(map(list, SETS)), dev=(texts, list(map(set, SETS)))
    )
    assert lists.classes_.tolist() == by_name.classes_.tolist() == ["bad", "long"]
    assert np.allclose(lists.predict_proba(texts), by_name.predict_proba(texts))
    assert [set(own) for own in lists.predict(texts)] == [
        {name for name, is_in in zip(("bad", "long"), row, strict=True) if is_in} for row in by_name.predict(texts)
    ]


@pytest.mark.parametrize("made", [np.array, csr_matrix, lambda rows: np.array(rows, bool), pd.DataFrame])
def test_a_matrix_of_one_column_is_one_class(made, sequence):
    texts, rows = [text for text, _ in TEXTS], [[int("bad" in own)] for own in SETS]
    found = PromptClassifier(sequence, "linear-probe", answers="multilabel").fit(texts, made(rows))
    assert found.classes_.tolist() == ["0"]
    answers = found.predict(texts)
    assert answers.shape == (8, 1)
    assert found.score(texts, made(rows)) == pytest.approx(np.mean(answers == rows))  # F1 of sets of one class


@pytest.mark.parametrize("made", [lambda own: np.array(own)[:, None], lambda own: pd.DataFrame({"answer": own})])
def test_a_column_of_answers_of_other_kinds_is_no_matrix(made, causal):
    texts = [{"text": text, "choices": ["good", "bad"]} for text, _ in TEXTS]
    places = [number % 2 for number in range(8)]
    model = PromptClassifier(causal, "zero-shot", answers="choices", template="{text}{prompt: it was}{mask}")
    found = model.fit(texts, made(places), dev=(texts, made(places)))
    assert found.score(texts, made(places)) == found.score(texts, places)


def test_a_class_of_dev_alone_is_known(sequence):
    texts = [text for text, _ in TEXTS]
    found = PromptClassifier(sequence, "linear-probe", answers="multilabel")
    found.fit(texts, SETS, dev=(texts, [("new",), *SETS[1:]]))
    assert found.classes_.tolist() == ["bad", "long", "new"]
    with pytest.raises(DataError, match="row 1: label 'other' is not one of the task's 3 classes"):
        found.score(texts, [("other",), *SETS[1:]])


@pytest.mark.parametrize("backbone", ["causal", "sequence"])
def test_auto_spares_the_label_words_of_many_labels(backbone, request, monkeypatch):
    """A language model answers by vectors; names of labels are texts of these labels alone."""
    monkeypatch.setattr("cuecraft.methods.auto.many.MOST_FEW", 1)
    records = [Record({"text": text}, own) for (text, _), own in zip(TEXTS * 2, SETS * 2, strict=True)]
    model = request.getfixturevalue(backbone)
    problem = make_problem(model, make_task(model, records, answers=MultilabelOptions()), records[:8], records[8:])
    outcome = make_method("auto", {"preset": "fast", "chat": "keep"}).fit(problem)
    names = " ".join(row.name for row in outcome.tried)
    assert ("vectors of names" in names) is model.has_words
    assert "class head" in names
    assert outcome.answers is None or len(outcome.answers.thresholds) == 2
