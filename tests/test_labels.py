"""Labels and texts as files and as Python have them: one check for both, and one for every kind of container."""

import datetime
import decimal
import json

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from pyarrow import parquet

from conftest import LABELS, TEXTS
from cuecraft import CuecraftError, CuecraftWarning, PromptClassifier
from cuecraft.core.errors import DataError
from cuecraft.data import read_records
from cuecraft.data.labels import class_names
from cuecraft.data.texts import as_labels, as_records

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
NUMBERS = [label for _, label in TEXTS]

GOOD = [("c", "c"), (" c ", "c"), (True, "True"), (3, "3"), (-3, "-3"), (3.0, "3"), (-0.0, "0"), (10**20, str(10**20))]
BAD = [["good"], [], {"name": "good"}, [["good"]], 0.5, float("inf"), None, float("nan"), "", " \t "]
PARQUET_BAD = [["good"], {"name": "good"}, 0.5, None, b"good", decimal.Decimal(1), datetime.date(2020, 1, 1)]


def of_python(value):
    return as_records(["a"], [value])[0].label


def of_jsonl(value, folder):
    path = folder / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "label": value}) + "\n")
    return read_records(path)[0].label


def of_parquet(value, folder):
    parquet.write_table(pyarrow.table({"text": ["a"], "label": pyarrow.array([value])}), folder / "a.parquet")
    return read_records(folder / "a.parquet")[0].label


@pytest.mark.parametrize(("value", "name"), GOOD)
def test_a_label_has_one_name_whichever_door_it_comes_through(tmp_path, value, name):
    assert of_python(value) == of_jsonl(value, tmp_path) == name
    if not isinstance(value, int) or value < 2**63:
        assert of_parquet(value, tmp_path) == name
    if isinstance(value, str):
        (tmp_path / "a.csv").write_text(f"text,label\na,{value}\n")
        assert read_records(tmp_path / "a.csv")[0].label == name
    assert of_python(np.array([value])[0]) == name
    if not isinstance(value, int) or value < 2**63:
        assert of_python(pyarrow.scalar(value)) == name


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_is_no_label_is_refused_by_files_and_by_python_alike(tmp_path, value):
    with pytest.raises(DataError, match=r"row 1: the label .*; (give|use) "):
        of_python(value)
    with pytest.raises(DataError, match=r"a\.jsonl line 1: .*label.*; (give|use) "):
        of_jsonl(value, tmp_path)


@pytest.mark.parametrize("mixed", [[True, 1, False], [True, "True"], [1, "1"], [1.0, "a", False]], ids=repr)
def test_labels_of_several_kinds_are_refused_by_files_as_by_python(tmp_path, mixed):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": value}) + "\n" for value in mixed))
    for read in (lambda: read_records(path), lambda: class_names(mixed)):
        with pytest.raises(DataError, match=r"the labels mix .*; use one kind"):
            read()


@pytest.mark.parametrize("unit", ["ns", "us", "D"])
def test_times_and_endless_numbers_are_no_labels(unit):
    for value in (np.datetime64("2020-01-01", unit), np.timedelta64(3, unit), 10**5000):
        with pytest.raises(DataError, match="row 1: the label is a "):
            class_names([value, value])


@pytest.mark.parametrize("value", PARQUET_BAD, ids=repr)
def test_what_parquet_has_and_is_no_label_is_refused(tmp_path, value):
    for read, where in ((of_python, "row 1: "), (lambda value: of_parquet(value, tmp_path), r"a\.parquet row 1: ")):
        with pytest.raises(DataError, match=f"{where}.*label.*; give "):
            read(value)


FINE = {
    "generator": lambda: (label for label in Y),
    "array": lambda: np.array(Y),
    "column": lambda: np.array(Y)[:, None],
    "frame": lambda: pd.DataFrame({"any": Y}),
    "series": lambda: pd.Series(Y, index=range(len(Y))[::-1]),
    "categorical": lambda: pd.Categorical(Y),
    "string": lambda: pd.array(Y, dtype="string"),
    "arrow": lambda: pyarrow.array(Y),
    "dictionary": lambda: pyarrow.array(Y).dictionary_encode(),
    "chunked": lambda: pyarrow.chunked_array([Y[:3], Y[3:]]),
    "table": lambda: pyarrow.table({"any": Y}),
}


@pytest.mark.parametrize("kind", FINE)
def test_labels_and_texts_may_be_in_any_container(kind):
    assert [record.label for record in as_records(X, FINE[kind]())] == Y
    assert [next(iter(record.fields.values())) for record in as_records(FINE[kind]())] == Y


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (pd.array([1, 0], dtype="Int64"), {"0": 0, "1": 1}),
        (pd.array([True, False], dtype="boolean"), {"False": False, "True": True}),
        (torch.tensor([1, 0]), {"0": 0, "1": 1}),
        ([1.0, 0.0], {"0": 0.0, "1": 1.0}),
        ([" b", "a ", "b"], {"a": "a", "b": "b"}),
    ],
)
def test_classes_keep_their_kind(labels, values):
    found = class_names(as_labels(labels))
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


WRONG = {
    "one-hot": (np.eye(2)[NUMBERS], r"the shape \(8, 2\).*argmax"),
    "one-hot rows": (list(np.eye(2)[NUMBERS]), "row 1: the label is a ndarray .*argmax"),
    "one-hot lists": (np.eye(2)[NUMBERS].tolist(), "row 1: the label is a list"),
    "dummies": (pd.get_dummies(pd.Series(Y)), "a table of 2 columns.*idxmax"),
    "arrow table": (pyarrow.table({"a": Y, "b": Y}), "a table of 2 columns"),
    "without dimension": (np.array("x"), r"the shape \(\)"),
    "one string": ("a" * len(X), "are a str; give them in a list"),
    "mapping": (dict(enumerate(Y)), "are a dict"),
    "set": (set(Y), "are a set"),
    "none": (None, r"are missing \(None\)"),
    "number": (3, "are an int"),
    "missing": (pd.array([None, *Y[1:]], dtype="string"), "row 1: the label is missing"),
    "missing category": (pd.Categorical([None, *Y[1:]]), "row 1: the label is missing"),
    "missing time": ([pd.NaT, *Y[1:]], "row 1: the label is missing"),
    "missing arrow": (pyarrow.array([None, *Y[1:]]), "row 1: the label is missing"),
    "masked": (np.ma.array(NUMBERS, mask=[1, *[0] * 7]), "row 1: the label is missing"),
    "kinds": ([1, *Y[1:]], r"mix numbers and strings \(1, 'negative'\)"),
    "too few": ((label for label in Y[1:]), "8 texts but 7 labels"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_labels_of_the_wrong_kind_cost_one_line(causal, kind):
    labels, what = WRONG[kind]
    with pytest.raises(DataError, match=what) as caught:
        PromptClassifier(causal, "zero-shot").fit(X, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (None, r"texts are missing \(None\)"),
        (3, "texts are an int"),
        (set(X), "texts are a set"),
        (np.array("x"), "texts are a ndarray"),
        ([pd.NA, *X[1:]], "row 1: 'text' is missing"),
        (pd.array([None, *X[1:]], dtype="string"), "row 1: 'text' is missing"),
        (np.array([X, X]).T, "row 1: 'text' is ndarray"),
        (b"a", "one text was given"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "two columns are called 'text'"),
        (pd.DataFrame([["a", "b", "c"]], columns=[1, "1", "z"]), "two columns are called '1'"),
        (pyarrow.table([["a"], ["b"]], names=["text", "text"]), "two columns are called 'text'"),
        (pyarrow.record_batch([["a"], ["b"]], names=["x", "x"]), "two columns are called 'x'"),
        ([{1: "a", "1": "b"}], "two columns are called '1'"),
    ],
)
def test_texts_of_the_wrong_kind_cost_one_line(texts, what):
    with pytest.raises(DataError, match=what):
        as_records(texts)


def test_dev_and_label_words_of_the_wrong_kind_cost_one_line(causal):
    for dev in ((X,), (X, Y, Y), "ab", X):
        with pytest.raises(DataError, match="give a pair"):
            PromptClassifier(causal, "zero-shot").fit(X, Y, dev=dev)
    for words in ({"bad", "good"}, 7, {0: "bad", "0 ": "worse", 1: "good"}, {None: "bad"}):
        with pytest.raises(CuecraftError, match="label_words"):
            PromptClassifier(causal, "zero-shot", label_words=words).fit(X, NUMBERS)


def test_columns_that_no_template_names_may_hold_anything(causal):
    frame = pd.DataFrame({"id": range(len(X)), "text": X, "rate": [None, *[0.5] * (len(X) - 1)], "when": pd.NaT})
    classifier = PromptClassifier(causal, "zero-shot", template="{text}{prompt: it was}{mask}").fit(frame, Y)
    plain = PromptClassifier(causal, "zero-shot", template="{text}{prompt: it was}{mask}").fit(X, Y)
    for texts in (frame, frame.to_dict("records"), pyarrow.Table.from_pandas(frame)):
        assert np.array_equal(classifier.predict_proba(texts), plain.predict_proba(X))
    assert classifier.fit_unlabeled(frame, ["negative", "positive"]).classes_.tolist() == ["negative", "positive"]
    with pytest.raises(DataError, match="row 1: 'id' is int"):
        PromptClassifier(causal, "zero-shot").fit(frame, Y)
    with pytest.raises(CuecraftError, match="names field 'review'"):
        PromptClassifier(causal, "zero-shot", template="{review}{prompt}{mask}").fit(frame, Y)


@pytest.mark.parametrize("kind", [int, float, np.float32, str])
def test_numbers_as_classes_call_for_words_and_find_them_by_value(causal, kind):
    labels = [kind(label) for label in NUMBERS]
    with pytest.warns(CuecraftWarning, match="give it words"):
        PromptClassifier(causal, "zero-shot").fit(X, labels)
    words = PromptClassifier(causal, "zero-shot", label_words={0: "bad", 1: "good"}).fit(X, labels)
    assert words.task_.verbalizer.words == (("bad",), ("good",))
    assert set(words.predict(X)) <= set(labels)
    assert words.score(X, labels) == words.score(X, NUMBERS)


def test_outer_spaces_are_no_part_of_a_class(causal):
    padded = [f" {label}\n" if n % 2 else label for n, label in enumerate(Y)]
    one, other = (PromptClassifier(causal, "zero-shot").fit(X, labels) for labels in (Y, padded))
    assert one.classes_.tolist() == other.classes_.tolist()
    assert one.score(X, Y) == other.score(X, padded) == one.score(X, padded)
    assert one.accuracies(X, padded) == other.accuracies(X, Y)


def test_a_class_head_tells_classes_apart_that_differ_in_case(sequence, causal, masked):
    labels = [("Good", "good")[label] for label in NUMBERS]
    heads = [(sequence, "prompt-tuning"), *((own, "linear-probe") for own in (sequence, causal, masked))]
    for backbone, method in heads:
        options = {"epochs": 1} if method == "prompt-tuning" else None
        found = PromptClassifier(backbone, method, method_options=options).fit(X, labels)
        assert found.classes_.tolist() == ["Good", "good"]
        assert found.score(X, labels) > 0
    with pytest.raises(CuecraftError, match="stands for both"):
        PromptClassifier(causal, "zero-shot").fit(X, labels)


def test_score_counts_an_unknown_class_as_a_mistake_and_takes_weights(causal):
    fitted = PromptClassifier(causal, "zero-shot").fit(X, Y)
    found = fitted.predict(X)
    assert fitted.score(X, ["mixed", *found[1:]]) == pytest.approx(7 / 8)
    assert fitted.score(X, ["mixed", *found[1:]], sample_weight=[0.0] + [1.0] * 7) == 1.0


def test_score_refuses_truth_values_for_numbers_and_the_other_way_round(causal):
    words = {0: "bad", 1: "good"}
    numbers = PromptClassifier(causal, "zero-shot", label_words=words).fit(X, [n % 2 for n in range(len(X))])
    truths = PromptClassifier(causal, "zero-shot", label_words={False: "bad", True: "good"})
    truths.fit(X, [bool(n % 2) for n in range(len(X))])
    for classifier, labels in (
        (numbers, [bool(n % 2) for n in range(len(X))]),
        (truths, [n % 2 for n in range(len(X))]),
    ):
        with pytest.raises(DataError, match="the labels mix"):
            classifier.score(X, labels)
    assert numbers.score(X, [str(n % 2) for n in range(len(X))]) == numbers.score(X, [n % 2 for n in range(len(X))])
