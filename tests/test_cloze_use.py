"""Cloze answers at the front ends: files, commands, recipes and Python."""

import json
from pathlib import Path

import numpy as np
import pytest

from bulk import rows_of
from conftest import TEXTS
from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact.predictor import Predictor
from cuecraft.core.errors import ExportError, MethodError
from cuecraft.data import Record

X = [text for text, _ in TEXTS]
Y = ["joy", ["bore", "dull"], "warm", "cold", ["love", "story"], "bad", "great", "joy"]
ROWS = [{"text": text, "answer": answer} for text, answer in zip(X, Y, strict=True)]
QUICK = {"epochs": 2, "learning_rate": 0.1}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, rows):
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    put("train.jsonl", ROWS)
    return put


def test_right_answers_are_fitted_in_python(causal, tmp_path):
    found = PromptClassifier(causal, "prompt-tuning", answers="cloze", method_options=QUICK)
    found.fit(X, Y, dev=(X, Y))
    assert set(found.task_.answers.seen) == {"joy", "bore", "dull", "warm", "cold", "love", "story", "bad", "great"}
    decisions = found.decide(X)
    assert found.predict(X).tolist() == [own.value for own in decisions]
    hits = [own.value in ([y] if isinstance(y, str) else y) for own, y in zip(decisions, Y, strict=True)]
    assert found.score(X, Y) == pytest.approx(np.mean(hits))
    scores = found.scores(X, Y)
    assert scores["tuned"]["precision_at_1"] == pytest.approx(np.mean(hits))
    assert set(scores) == {"tuned", "untuned", "calibrated"}
    assert scores["untuned"] == scores["calibrated"], "the whole vocabulary keeps the model's own probabilities"
    with pytest.raises(MethodError, match="share no classes in answers of kind cloze"):
        found.predict_proba(X)
    found.save(tmp_path / "a")
    loaded = PromptClassifier.load(tmp_path / "a", model=causal)
    assert [dict(own.options) for own in loaded.decide(X)] == [dict(own.options) for own in decisions]


def test_untuned_words_are_found_by_the_weights_of_the_model_itself(causal):
    """Of tuned weights the untuned prompt has none: each is read by its own."""
    found = PromptClassifier(causal, "lora", answers="cloze", method_options={"epochs": 3, "learning_rate": 0.05})
    found.fit(X, Y, dev=(X, Y))
    plain = PromptClassifier(causal, "zero-shot", answers="cloze").fit(X, Y, dev=(X, Y))
    assert found.outcome_.is_tuned
    assert found.scores(X, Y)["untuned"] == plain.scores(X, Y)["untuned"]
    assert [own.options for own in found.decide(X)] != [own.options for own in plain.decide(X)]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("words", [(), ("--answer-option", "candidates=seen")], ids=["any word", "candidates"])
def test_a_file_is_tuned_tested_and_predicted(run, causal_folder, words):
    tune = ("tune", "train.jsonl", "--dev", "train.jsonl", "--test", "train.jsonl", "--model", causal_folder)
    options = ("--method", "prompt-tuning", "--option", "epochs=2", "--answers", "cloze", *words, "--out", "runs/a")
    code, out, err = run(*tune, *options, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["answers"], document["primary"]) == ("cloze", "precision_at_1")
    measured = {"test_precision_at_1", "test_precision_at_10", "test_mean_reciprocal_rank"}
    tuned_by = "precision_at_1" if words else "first_token_precision_at_1"
    dev = {name for name in document["metrics"] if name.startswith("dev_")}
    assert (measured <= set(document["metrics"]), dev) == (True, {f"dev_{tuned_by}"})
    code, out, err = run("predict", "runs/a", "awful", "a warm film", "--json")
    assert code == 0, err
    predictor = Predictor.load("runs/a")
    expected = predictor.decide(predictor.examples(["awful", "a warm film"]))
    for row, own in zip(json.loads(out)["predictions"], expected, strict=True):
        assert (row["value"], row["confidence"], row["options"]) == (own.value, own.confidence, dict(own.options))
    assert run("predict", "runs/a", "awful")[0] == 0
    assert "cloze" in run("show", "runs/a")[1]
    code, _, err = run("classify", "runs/a", "train.jsonl", "--out", "answers")
    assert code == 0, err
    for row, own in zip(rows_of(Path("answers")), predictor.decide(predictor.examples(X)), strict=True):
        assert row["value"] == own.value
        assert row["options"] == pytest.approx(dict(own.options), abs=2e-6)


@pytest.mark.usefixtures("files")
def test_a_recipe_has_them(command, causal_folder, files):
    files("cities.txt", "joy\nbore\ndull\nwarm\ncold\nlove\nstory\nbad\ngreat\n")
    files(
        "recipe.yaml",
        f"name: words\ndescription: words\nmodel: {{name: {causal_folder}}}\n"
        "data: {train: train.jsonl, dev: train.jsonl}\n"
        "task: {answers: {kind: cloze, candidates: cities.txt}}\ntune: {method: zero-shot}\n",
    )
    code, _, err = command("run", "recipe.yaml", "--out", "runs/b", "--json")
    assert code == 0, err
    assert Predictor.load("runs/b/artifact").task.answers.candidates[0] == "joy"


def test_a_graph_answers_with_candidates_and_any_word_is_refused(causal, untraced, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from cuecraft.export.folder import GraphRequest, export_graph, own_texts
    from cuecraft.export.runtime import ExportedClassifier

    texts = [Record({"text": text}) for text in X]
    wanted = GraphRequest("onnx", "fp32", "cut", texts, None)
    for answers in ("cloze", {"kind": "cloze", "candidates": "seen"}):
        found = PromptClassifier(causal, "prompt-tuning", answers=answers, method_options=QUICK).fit(X, Y, dev=(X, Y))
        if answers == "cloze":
            with pytest.raises(ExportError, match="any word may be the answer"):
                export_graph({"own": found.artifact_}, causal, tmp_path / "graph", wanted)
            continue
        assert all(
            set(own.fields["text"].split()) <= set(found.task_.answers.candidates)
            for own in own_texts([found.artifact_])
        )
        export_graph({"own": found.artifact_}, causal, tmp_path / "graph", wanted)
        loaded = ExportedClassifier.load(tmp_path / "graph")
        for own, expected in zip(loaded.decide(loaded.task.examples(texts)), found.decide(X), strict=True):
            assert own.value == expected.value
            assert own.options == pytest.approx(dict(expected.options), abs=1e-4)


BAD = {
    "no answer": ([{"text": "a", "answer": ""}], (), "bad.jsonl line 1: answer column 'answer' is empty"),
    "no column": ([{"text": "a"}], (), "no column 'answer'"),
    "a list with a hole": ([{"text": "a", "answer": ["x", None]}], (), "answer column 'answer' is empty, or a string"),
    "outside": (
        [],
        ("--answer-option", "candidates=joy,bad"),
        "row 2: none of the answers bore, dull is one of the 2 candidates",
    ),
    "no file": ([], ("--answer-option", "candidates=none.txt"), "none.txt: candidates cannot be read"),
    "an empty file": ([], ("--answer-option", "candidates=empty.txt"), "empty.txt: the file has no candidates"),
    "options missing": ([], ("--answer-option", "candidates=options"), "row 1 brings no options to choose among"),
    "words": ([], ("--label-words", "joy=happy"), "cloze answers are their own words"),
    "tokens": ([], ("--answer-option", "tokens=none"), "tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(run, files, causal_folder, name):
    rows, words, what = BAD[name]
    files("empty.txt", "\n")
    data = files("bad.jsonl", rows) if rows else "train.jsonl"
    code, out, err = run("tune", data, "--model", causal_folder, "--answers", "cloze", "--method", "zero-shot", *words)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert what in errors[0]
