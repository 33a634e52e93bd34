"""Labels of words at the front ends: Python, files, commands, a server's wire, and what they refuse."""

import json

import numpy as np
import pytest

from cuecraft.api.estimators import PromptClassifier
from cuecraft.core.errors import DataError, ExportError, MethodError
from cuecraft.data.texts import as_records
from cuecraft.export.folder import GraphRequest, export_graph
from cuecraft.methods.prepare import make_task
from cuecraft.methods.registry import make_method
from cuecraft.study.compare.comparison import Folder, _Run
from cuecraft.study.compare.config import ComparedMethod, Split, Splits
from cuecraft.study.compare.report import render_report
from cuecraft.study.compare.schema import Comparison
from cuecraft.task.answers.tokens import TokenLabels, TokenOptions
from token_labels import LABELLED, SPACE, rows_of, spans_of

X = [text for text, _ in LABELLED]
SPANS = [
    [{"label": label, "start": start, "end": stop} for label, start, stop in spans_of(text, own)]
    for text, own in LABELLED
]
QUICK = {"epochs": 3, "learning_rate": 0.1}


@pytest.fixture
def masked_folder(masked, tmp_path):
    folder = tmp_path / "tiny-bert"
    masked.model.save_pretrained(folder)
    masked.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, rows):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
        return name

    return put


def test_spans_of_texts_in_python(sequence, tmp_path):
    classifier = PromptClassifier(sequence, "deep-cue", method_options=QUICK)
    classifier.fit(X, SPANS, dev=(X, SPANS))  # the spans show the kind
    assert classifier.task_.answers == TokenLabels(SPACE.labels, "text")
    decisions = classifier.decide(X)
    found = classifier.predict(X)
    assert [list(own) for own in found] == [own.value for own in decisions]
    for text, own in zip(X, decisions, strict=True):
        assert all(text[one["start"] : one["end"]] == one["text"] for one in own.value)
    measured = classifier.scores(X, SPANS)["tuned"]
    assert measured["text_f1"] == pytest.approx(classifier.score(X, SPANS))
    assert 0 <= measured["entity_f1"] <= 1
    classifier.save(tmp_path / "a")
    loaded = PromptClassifier.load(tmp_path / "a", model=sequence)
    assert [own.value for own in loaded.decide(X)] == [own.value for own in decisions]
    with pytest.raises(MethodError, match="share no classes in answers of kind tokens"):
        classifier.predict_proba(X)


def test_tags_of_words_in_python_are_the_same_as_spans(sequence):
    words = [["the", "plot"], ["a", "bore"], ["again"], ["dull", "story"]] * 3
    tags = [["B-film", "I-film"], ["O", "B-mood"], ["O"], ["B-mood", "B-film"]] * 3
    spans = [
        [("film", 0, 8)],
        [("mood", 2, 6)],
        [],
        [("mood", 0, 4), ("film", 5, 10)],
    ] * 3
    made = []
    for texts, labels in ((words, tags), ([" ".join(own) for own in words], spans)):
        found = PromptClassifier(sequence, "linear-probe", answers="tokens").fit(texts, labels)
        made.append([own.value for own in found.decide([" ".join(own) for own in words])])
    assert made[0] == made[1]


def test_a_masked_model_is_used_by_its_features(masked_folder):
    found = PromptClassifier(str(masked_folder), "linear-probe").fit(X, SPANS)
    assert found.backbone_.head_kind == "sequence"


def test_commands_tune_predict_and_show(files, command, masked_folder):
    rows = [{"text": text, "spans": spans} for text, spans in zip(X, SPANS, strict=True)]
    files("train.jsonl", rows)
    options = ("--option", "epochs=3", "--option", "learning_rate=0.1")
    code, out, err = command(
        *("tune", "train.jsonl", "--model", masked_folder, "--dev", "train.jsonl", "--test", "train.jsonl"),
        *("--method", "deep-cue", "--out", "run", "--json", *options),
    )
    assert code == 0, err
    assert "kind tokens" in err
    document = json.loads(out)
    assert {"test_text_f1", "test_entity_f1", "test_macro_f1"} <= set(document["metrics"])
    code, out, err = command("predict", "run", "--file", "train.jsonl", "--json")
    assert code == 0, err
    predictor = PromptClassifier.load("run")
    expected = predictor.decide(X)
    lines = json.loads(out)["predictions"]
    assert [line["value"] for line in lines] == [own.value for own in expected]
    assert [line["confidence"] for line in lines] == pytest.approx([own.confidence for own in expected])
    assert command("show", "run")[0] == 0


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([["film", 0, 3], ["mood", 2, 5]], "row 1: the span 2 to 5 of label 'mood' overlaps the span 0 to 3"),
        ([{"label": "film", "start": 4, "end": 40}], "is not within the text, which has 26 characters"),
        ([{"label": "film", "start": 2, "end": 2}], "has no characters"),
        ([{"label": "film", "start": 2}], "a span has no 'end'"),
        ([["film", 0, 2, 3]], "is no span"),
    ],
)
def test_bad_spans_are_one_line_and_exit_code_2(spans, message, files, command, masked_folder):
    rows = [{"text": text, "spans": own} for text, own in zip(X, SPANS, strict=True)]
    files("train.jsonl", [{**rows[0], "spans": spans}, *rows[1:]])
    code, _, err = command("tune", "train.jsonl", "--model", masked_folder, "--answers", "tokens", "--out", "run")
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_an_unknown_label_in_the_test_file_is_one_line_and_exit_code_2(files, command, masked_folder):
    rows = [{"text": text, "spans": own} for text, own in zip(X, SPANS, strict=True)]
    files("train.jsonl", rows)
    files("test.jsonl", [{"text": "a plot", "spans": [{"label": "actor", "start": 2, "end": 6}]}])
    code, _, err = command(
        *("tune", "train.jsonl", "--model", masked_folder, "--test", "test.jsonl", "--out", "run"),
        *("--method", "linear-probe"),
    )
    assert code == 2
    assert "label 'actor', which is not one of the task's" in " ".join(err.split())


def test_a_causal_model_is_refused_with_the_reason(files, command, causal_folder):
    files("train.jsonl", [{"text": text, "spans": own} for text, own in zip(X, SPANS, strict=True)])
    code, _, err = command("tune", "train.jsonl", "--model", causal_folder, "--out", "run")
    assert code == 2
    assert "has not read what stands behind a word" in " ".join(err.split())
    assert "taken to be" not in err


def test_texts_without_spans_alone_are_refused(sequence):
    with pytest.raises(DataError, match="no text has a labelled span"):
        PromptClassifier(sequence, "linear-probe", answers="tokens").fit(X, [[] for _ in X])


def test_graphs_are_refused_in_one_line(sequence, tmp_path):
    found = PromptClassifier(sequence, "linear-probe").fit(X, SPANS)
    request = GraphRequest("onnx", "fp32", "cut", as_records(X), None)
    with pytest.raises(ExportError, match="labels of its words") as caught:
        export_graph({"own": found.artifact_}, sequence, tmp_path / "graph", request)
    assert "\n" not in str(caught.value)


def test_confidences_are_probabilities(sequence):
    found = PromptClassifier(sequence, "linear-probe").fit(X, SPANS)
    decisions = found.decide(X)
    assert all(0 <= own.confidence <= 1 for own in decisions)
    assert np.all([0 <= value <= 1 for own in decisions for value in own.options.values()])


def test_methods_are_compared_by_their_scores_of_spans(sequence, tmp_path):
    rows = rows_of()
    task = make_task(sequence, rows, answers=TokenOptions())
    named = [ComparedMethod(name, make_method(name, own)) for name, own in (("linear-probe", {}), ("deep-cue", QUICK))]
    place = Folder(tmp_path / "compared")
    run = _Run(place, sequence, task, Splits({1: Split(rows, rows)}, rows, ()), named, lambda name: lambda event: None)
    with place.locked():
        run.run_cells()
        document = run.document("films")
    assert Comparison.model_validate_json(document.model_dump_json()) == document
    assert (document.task.answers, document.task.primary) == ("tokens", "text_f1")
    for row in document.rows:
        assert list(row.measures) == ["text_f1", "entity_f1", "entity_precision", "entity_recall", "macro_f1"]
        assert row.score.mean == pytest.approx(row.measures["text_f1"].mean)
    assert "entity F1" in render_report(document)
