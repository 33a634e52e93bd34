"""Each kind of answers by commands: tuned, killed and resumed, predicted as by Python; mistakes are one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import TEXTS
from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact.predictor import Predictor
from cuecraft.core.checkpoints import Slot
from cuecraft.core.errors import DataError
from cuecraft.data import Reading
from cuecraft.runs.answers import asked_of
from cuecraft.runs.predicting import listed
from cuecraft.runs.spec import RunSpec
from cuecraft.runs.tune import checked_splits
from cuecraft.task.answers import ANSWERS, Decision, Verbalizer
from cuecraft.task.answers.choices import Choices
from cuecraft.task.answers.multilabel import Multilabel

X = [text for text, _ in TEXTS]
NUMBERS = [1.5, 4.0, 2.0, 1.0, 3.5, 4.0, 1.0, 2.0]
SETS = [["joy"], [], ["dull", "joy"], ["dull"], ["joy"], ["joy"], ["dull"], []]


def spans_of(text):
    """Label the first word of a text, and its second one otherwise."""
    first, *others = text.split(" ")
    found = [{"label": "head", "start": 0, "end": len(first)}]
    if others:
        found.append({"label": "next", "start": len(first) + 1, "end": len(first) + 1 + len(others[0])})
    return found


#: Rows of each kind, the options of a training with its `--answers`, and the keys of documents.
KINDS = {
    "labels": ([{"text": x, "label": label} for x, (_, label) in zip(X, TEXTS, strict=True)], (), "accuracy"),
    "choices": (
        [{"text": x, "choices": ["good", "bad", "so so"][: 2 + n % 2], "answer": n % 2} for n, x in enumerate(X)],
        (),
        "accuracy",
    ),
    "multilabel": ([{"text": x, "labels": own} for x, own in zip(X, SETS, strict=True)], (), "example_f1"),
    "ordinal": ([{"text": x, "label": own} for x, own in zip(X, NUMBERS, strict=True)], (), "neg_mean_absolute_error"),
    "cloze": (
        [{"text": x, "answer": ["joy", "bore", "film"][n % 3]} for n, x in enumerate(X)],
        ("--answers", "cloze", "--answer-option", "candidates=seen"),
        "precision_at_1",
    ),
    "open-set": (
        [{"text": x, "label": ["good", "bad", "oos"][n % 3]} for n, x in enumerate(X)],
        ("--reject", "oos"),
        "accuracy",
    ),
    "tokens": ([{"text": x, "spans": spans_of(x)} for x in X], ("--template", "{prompt}{text}"), "text_f1"),
}
#: What `show` says of an artifact of each kind: its classes, and what its answers were settled to be.
SHOWN = {
    "labels": ("0 = bad; 1 = good",),
    "choices": ("choices (scoring ",),
    "multilabel": ("multilabel (thresholds 0.",),
    "ordinal": ("ordinal (coverage 0.800, margin ", "mean absolute error "),
    "cloze": ("cloze (among candidates, ", "bore = bore"),
    "open-set": ("open-set (reject oos, keep 0.950, least 0.", "bad = bad; good = good"),
    "tokens": ("tokens (field text, reading context)", "(class head)"),
}
WORDS = ("--label-words", "0=bad", "--label-words", "1=good")


@pytest.fixture(scope="module")
def folders(causal_folder, sequence, tmp_path_factory):
    """Return the folder of a tiny model for each kind: an encoder where a head answers at words."""
    path = tmp_path_factory.mktemp("models") / "tiny-encoder"
    sequence.model.save_pretrained(path)
    sequence.tokenizer.save_pretrained(path)
    return {kind: path if kind == "tokens" else causal_folder for kind in KINDS}


@pytest.fixture
def put(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def tuning(kind, folder):
    words = (*KINDS[kind][1], *(WORDS if kind == "labels" else ()))
    data = ("tune", "train.jsonl", "--dev", "train.jsonl", "--test", "train.jsonl", "--model", folder)
    return (*data, "--method", "deep-cue", "--option", "epochs=3", "--option", "batch_size=4", *words)


def test_every_kind_is_here():
    assert set(KINDS) == set(ANSWERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_tuned_killed_resumed_and_predicted(kind, run, put, folders, monkeypatch):
    rows, _, primary = KINDS[kind]
    put("train.jsonl", rows)
    words = tuning(kind, folders[kind])
    code, out, err = run(*words, "--out", "whole", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["answers"], document["primary"]) == (kind, primary)
    names = {f"dev_{primary}", f"test_{primary}", f"untuned_test_{primary}", f"calibrated_untuned_test_{primary}"}
    assert names <= set(document["metrics"])

    with monkeypatch.context() as patch:
        killed_after(2, patch)
        assert run(*words, "--out", "again", "--checkpoints", "state")[0] != 0
    code, out, err = run(*words, "--out", "again", "--checkpoints", "state", "--json")
    assert code == 0, err
    assert json.loads(out)["artifact_sha256"] == document["artifact_sha256"]

    put("asked.jsonl", asked(rows))
    code, out, err = run("predict", "whole", "--file", "asked.jsonl", "--model", folders[kind], "--json")
    assert code == 0, err
    found = json.loads(out)
    predictor = Predictor.load("whole", str(folders[kind]))
    expected = predictor.decide(predictor.examples(asked(rows)))
    assert found["answers"] == kind
    for own, decision in zip(found["predictions"], expected, strict=True):
        assert own["value"] == json.loads(json.dumps(decision.value))
        assert own["confidence"] == decision.confidence
        assert own["options"] == dict(decision.options)
    loaded = PromptClassifier.load("whole", str(folders[kind]))
    assert [own.value for own in loaded.decide(asked(rows))] == [own.value for own in expected]
    assert run("predict", "whole", "--file", "asked.jsonl", "--model", folders[kind])[0] == 0
    code, shown, _ = run("show", "whole")
    assert code == 0
    assert "neg_" not in shown
    plain = " ".join(shown.replace("│", " ").split())
    for told in SHOWN[kind]:
        assert told in plain


def asked(rows):
    return [{name: row[name] for name in ("text", "choices") if name in row} for row in rows]


def killed_after(times, monkeypatch):
    """Let a training end as if it were killed, once it has kept its state so often."""
    saved, plain = [], Slot.save

    def save(self, document, tensors):
        plain(self, document, tensors)
        saved.append(self)
        if len(saved) == times:
            raise KeyboardInterrupt

    monkeypatch.setattr(Slot, "due", lambda self: True)
    monkeypatch.setattr(Slot, "save", save)


BAD = {
    "labels: none": ("labels", {"text": "a", "label": None}, (), "line 9: label column 'label' is empty"),
    "choices: an answer outside": (
        "choices",
        {"text": "a", "choices": ["x", "y"], "answer": 2},
        (),
        "line 9: answer",
    ),
    "choices: one option": ("choices", {"text": "a", "choices": ["x"], "answer": 0}, (), "line 9: only one option"),
    "choices: no options": ("choices", {"text": "a", "answer": 0}, (), "line 9: no column 'choices'"),
    "multilabel: no list": ("multilabel", {"text": "a", "labels": 3}, (), "line 9: column 'labels' is a int"),
    "multilabel: one string": ("multilabel", {"text": "a", "labels": "joy"}, (), "no separator is given"),
    "ordinal: no number": (
        "ordinal",
        {"text": "a", "label": "many"},
        ("--answers", "ordinal"),
        "line 9: column 'label'",
    ),
    "ordinal: infinite": ("ordinal", {"text": "a", "label": float("inf")}, (), "line 9: column 'label'"),
    "cloze: empty": ("cloze", {"text": "a", "answer": ""}, (), "line 9: answer column 'answer' is empty"),
    "tokens: overlapping": (
        "tokens",
        {"text": "a joy", "spans": [{"label": "x", "start": 0, "end": 3}, {"label": "y", "start": 2, "end": 5}]},
        (),
        "train.jsonl row 9: the span",
    ),
    "tokens: beyond the text": (
        "tokens",
        {"text": "a", "spans": [{"label": "x", "start": 0, "end": 9}]},
        (),
        "train.jsonl row 9: the",
    ),
    "ordinal: outside of the range": (
        "ordinal",
        {"text": "a", "label": 9.5},
        ("--answer-option", "range=1,4"),
        "train.jsonl row 9: the number 9.5 is not in the range 1 to 4",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_used_is_one_line(name, run, put, folders):
    kind, row, words, what = BAD[name]
    put("train.jsonl", [*KINDS[kind][0], row])
    code, out, err = run(*tuning(kind, folders[kind]), *words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()  # what was inferred is no line of its own before it
    assert line.startswith("error: ")
    assert what in line


WITHIN = {"text": "films", "spans": [{"label": "head", "start": 0, "end": 4}]}


@pytest.mark.parametrize("fault", ["dev", "model", "option"])
def test_a_warning_does_not_stand_before_an_error(fault, run, put, folders, monkeypatch):
    """Spans within words are warned of where the work goes on; where an error ends it, the error is all."""
    put("train.jsonl", [*KINDS["tokens"][0], WITHIN])
    put("dev.jsonl", [{"text": "a b", "spans": [{"label": "odd", "start": 0, "end": 1}]}])
    words = list(tuning("tokens", folders["tokens"]))
    if fault == "dev":
        words[words.index("--dev") + 1] = "dev.jsonl"
    if fault == "model":
        words[words.index("--model") + 1] = "no-such-model"
    if fault == "option":
        words[words.index("deep-cue")] = "first-order"
        words = [own for own in words if own not in ("--option", "epochs=3", "batch_size=4")]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # a part of the work that began
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_a_warning_is_given_once_where_the_work_goes_on(run, put, folders):
    put("train.jsonl", [*KINDS["tokens"][0], WITHIN])
    code, _, err = run(*tuning("tokens", folders["tokens"]), "--json")
    assert code == 0, err
    assert err.count("begin or end within a word") == 1
    assert err.count("answers are taken to be of kind tokens") == 1


OUTSIDE = {
    "labels": ({"text": "a", "label": "mixed"}, "test.jsonl row 1: label 'mixed' is not one of"),
    "multilabel": ({"text": "a", "labels": ["joy", "fear"]}, "test.jsonl row 1: label 'fear' is not one of"),
    "ordinal": ({"text": "a", "label": 9.5}, "test.jsonl row 1: the number 9.5"),
    "cloze": ({"text": "a", "answer": "zebra"}, "test.jsonl row 1: answer 'zebra' is not one of the"),
    "tokens": (
        {"text": "a b", "spans": [{"label": "odd", "start": 0, "end": 1}]},
        "test.jsonl row 1: a span has label",
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_an_answer_that_training_does_not_have_is_one_line_before_the_model_is_loaded(kind, run, put):
    row, what = OUTSIDE[kind]
    put("train.jsonl", KINDS[kind][0])
    put("test.jsonl", [row])
    words = list(tuning(kind, "no-such-model"))
    words[words.index("--test") + 1] = "test.jsonl"
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()  # what was inferred is no line of its own before it
    assert line.startswith("error: ")
    assert what in line


def test_sets_in_python_are_lists_or_an_indicator_matrix(causal):
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer()
    matrix = binarizer.fit_transform(SETS)
    options = {"epochs": 2}
    by_lists = PromptClassifier(causal, "deep-cue", method_options=options).fit(X, SETS, dev=(X, SETS))
    words = {str(number): name for number, name in enumerate(binarizer.classes_)}
    asked = PromptClassifier(causal, "deep-cue", answers="multilabel", label_words=words, method_options=options)
    by_matrix = asked.fit(X, matrix, dev=(X, matrix))
    assert by_lists.classes_.tolist() == binarizer.classes_.tolist()
    found = by_matrix.predict(X)
    assert found.shape == matrix.shape
    assert np.array_equal(binarizer.transform(by_lists.predict(X)), found)
    assert np.allclose(by_lists.predict_proba(X), by_matrix.predict_proba(X))
    expected = f1_score(matrix, found, average="samples", zero_division=1)
    assert by_matrix.score(X, matrix) == pytest.approx(expected)
    assert by_lists.score(X, SETS) == pytest.approx(expected)


def test_csv_has_sets_with_a_separator(run, put, folders, tmp_path):
    lines = [f'"{x}",{";".join(own)}' for x, own in zip(X, SETS, strict=True)]
    (tmp_path / "train.csv").write_text("text,labels\n" + "\n".join(lines) + "\n")
    words = ("--answers", "multilabel", "--separator", ";", "--method", "zero-shot", "--model", folders["multilabel"])
    code, out, err = run("tune", "train.csv", "--test", "train.csv", *words, "--out", "a", "--json")
    assert code == 0, err
    assert list(json.loads(out)["label_words"]) == ["dull", "joy"]


def test_predict_prints_the_likeliest_of_many_options_and_all_where_asked(run, put, folders):
    names = [f"c{number:02}" for number in range(14)]
    put("train.jsonl", [{"text": X[n % 8], "labels": [names[n % 14], names[(n + 5) % 14]]} for n in range(28)])
    words = ("--model", folders["multilabel"], "--method", "zero-shot", "--out", "many")
    assert run("tune", "train.jsonl", *words)[0] == 0
    (found,) = json.loads(run("predict", "many", "a joy", "--json")[1])["predictions"]
    (whole,) = json.loads(run("predict", "many", "a joy", "--json", "--all-options")[1])["predictions"]
    assert list(whole["options"]) == names
    likeliest = sorted(names, key=lambda name: -whole["options"][name])
    kept = [name for place, name in enumerate(likeliest) if place < 10 or name in whole["value"]]
    assert found["options"] == {name: whole["options"][name] for name in kept}
    assert list(found["options"]) == kept
    assert {**found, "options": None} == {**whole, "options": None}


@pytest.mark.parametrize(
    ("answers", "value", "kept"),
    [
        (Multilabel(("a", "b", "c", "d"), (("a",), ("b",), ("c",), ("d",))), ["d"], ["b", "c", "d"]),
        (Multilabel(("a", "b", "c", "d"), (("a",), ("b",), ("c",), ("d",))), [], ["b", "c"]),
        (Verbalizer(("a", "b", "c", "d"), (("a",), ("b",), ("c",), ("d",))), "b", ["b", "c"]),
        (Choices(), 3, ["a", "b", "c", "d"]),
    ],
)
def test_what_is_answered_is_listed_whatever_its_probability(answers, value, kept):
    decision = Decision(value, 0.5, {"a": 0.1, "b": 0.5, "c": 0.35, "d": 0.05})
    assert list(listed(answers, decision, 2).options) == kept


def test_a_class_head_is_shown_with_the_names_of_classes_and_without_label_words(run, put, folders):
    put("train.jsonl", KINDS["labels"][0])
    for method, is_headed in (("embedding-probe", True), ("zero-shot", False)):
        words = ("tune", "train.jsonl", "--model", folders["labels"], "--method", method, *WORDS, "--out", method)
        code, out, err = run(*words)
        assert code == 0, err
        assert ("label words" in out) is not is_headed
        shown = run("show", method)[1]
        card = Path(method, "README.md").read_text()
        for text in (out, shown):
            assert ("(class head)" in text) is is_headed
            assert ("= bad" in text) is not is_headed
        assert ("| 0 | bad |" in card) is not is_headed
        assert "0, 1" in card or not is_headed


HIDDEN = {
    "tokens": ({"spans": [["x", 0, 4]]}, {"spans": [["x", 0, 99]]}, {"kind": "tokens"}, "is not within the text"),
    "choices": ({"choices": ["a", "b"], "answer": 0}, {"answer": 2}, {"kind": "choices"}, "none of its 2 options"),
    "numbers": ({"score": 1}, {"score": 7}, {"kind": "ordinal", "range": [0, 5]}, "is not in the range 0 to 5"),
    "numbers of words": (
        {"score": 1},
        {"score": 7},
        {"kind": "ordinal", "values": {"bad": 0, "good": 5}},
        "is not in the range 0 to 5",
    ),
    "candidates": (
        {"answer": "a"},
        {"answer": "c"},
        {"kind": "cloze", "candidates": ["a", "b"]},
        "of the 2 candidates",
    ),
    "rows' own": (
        {"answer": "a", "choices": ["a", "b"]},
        {"answer": "c"},
        {"kind": "cloze", "candidates": ["options"]},
        "one of the 2 options of its row",
    ),
    "sets": (
        {"labels": ["a"]},
        {"labels": ["c"]},
        {"kind": "multilabel", "classes": ["a", "b"]},
        "not one of the task",
    ),
    "open": ({"label": "a"}, {"label": "c"}, {"kind": "open-set", "classes": ["a", "b"]}, "not one of the task"),
}


@pytest.mark.parametrize("shots", [None, 2])
@pytest.mark.parametrize("part", ["train", "dev", "test"])
@pytest.mark.parametrize("name", HIDDEN)
def test_an_answer_of_any_kind_outside_is_one_line_that_names_file_and_row(name, part, shots, tmp_path):
    """Before a model is loaded: in each file, whether or not there is another, and where shots are drawn."""
    good, bad, answers, message = HIDDEN[name]
    for own in ("train", "dev", "test"):
        rows = [{"text": f"text {number}", **good} for number in range(6)]
        rows[4] |= bad if own == part else {}
        (tmp_path / f"{own}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {own: str(tmp_path / f"{own}.jsonl") for own in {"train", "dev", part}}
    spec = RunSpec.model_validate(
        {"data": {**files, "shots": shots}, "task": {"answers": answers}, "tune": {"method": "auto"}}
    )
    with pytest.raises(DataError) as caught:
        checked_splits(spec, asked_of(spec, Reading()), Reading())
    assert message in str(caught.value)
    assert str(caught.value).startswith(files[part])
    assert re.match(r" (row|line) 5: ", str(caught.value).removeprefix(files[part]))
    assert "\n" not in str(caught.value)
