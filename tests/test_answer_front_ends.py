"""Answers of every kind at the front ends: Python, files and commands; a kind of its own stands for all of them."""

import json

import numpy as np
import pytest

from conftest import TEXTS
from cuecraft.api.estimators import PromptClassifier
from cuecraft.api.family import PromptFamily
from cuecraft.artifact.predictor import Predictor
from cuecraft.cli.display.results import print_family, print_next
from cuecraft.core.errors import DataError, MethodError
from cuecraft.methods.objectives import OBJECTIVES
from cuecraft.task.answers import ANSWERS

X, Y = [text for text, _ in TEXTS], ["yes" if label else "no" for _, label in TEXTS]
ASKED = [{"text": text, "choices": ["good", "bad", "cold"][: 2 + n % 2]} for n, text in enumerate(X)]
PLACES = [n % 2 for n in range(len(X))]
QUICK = {"epochs": 2, "learning_rate": 0.1}


def test_texts_bring_choices_in_python(causal, tmp_path):
    found = PromptClassifier(causal, "prompt-tuning", method_options=QUICK).fit(ASKED, PLACES, dev=(ASKED, PLACES))
    assert found.task_.answers.kind == "choices"  # which the texts show
    decisions = found.decide(ASKED)
    assert [set(own.options) for own in decisions] == [set(row["choices"]) for row in ASKED]
    assert found.predict(ASKED).tolist() == [own.value for own in decisions]
    hits = [own.value == place for own, place in zip(decisions, PLACES, strict=True)]
    assert found.score(ASKED, PLACES) == pytest.approx(np.mean(hits))
    weights = [2.0 if row < 3 else 1.0 for row in range(len(X))]
    assert found.score(ASKED, PLACES, weights) == pytest.approx(np.average(hits, weights=weights))
    assert found.scores(ASKED, PLACES)["tuned"]["accuracy"] == pytest.approx(np.mean(hits))
    with pytest.raises(MethodError, match="share no classes in answers of kind choices"):
        found.predict_proba(ASKED)
    with pytest.raises(DataError, match="row 1: no column 'choices'"):
        found.predict(X)
    found.save(tmp_path / "a")
    loaded = PromptClassifier.load(tmp_path / "a", model=causal)
    assert [dict(own.options) for own in loaded.decide(ASKED)] == [dict(own.options) for own in decisions]
    assert loaded.answers == found.artifact_.task.answers
    again = loaded.set_params(method="zero-shot", method_options=None).fit(ASKED, PLACES)
    assert again.task_.answers.kind == "choices"


@pytest.mark.parametrize("place", [0, 3])
def test_a_text_without_options_among_others_is_named_wherever_it_stands(causal, place):
    texts = [*ASKED]
    texts[place] = {"text": "a film"}
    with pytest.raises(DataError, match=f"row {place + 1}: no column 'choices'"):
        PromptClassifier(causal, "zero-shot").fit(texts, PLACES)


def test_what_labels_alone_can_do_is_refused_in_one_line(causal):
    with pytest.raises(MethodError, match="label_words='auto' goes with labels; the answers are of kind choices"):
        PromptClassifier(causal, "zero-shot", label_words="auto").fit(ASKED, PLACES)
    with pytest.raises(MethodError, match="unknown kind of answers 'choice'"):
        PromptClassifier(causal, "zero-shot", answers="choice").fit(ASKED, PLACES)
    with pytest.raises(MethodError, match="answers of kind choices has no option 'colour'"):
        PromptClassifier(causal, "zero-shot", answers={"kind": "choices", "colour": 1}).fit(ASKED, PLACES)


def test_labels_stay_labels_whatever_else_texts_bring(causal):
    found = PromptClassifier(causal, "zero-shot", answers="labels", template="{text}{prompt}{mask}").fit(ASKED, Y)
    assert found.task_.has_labels
    assert found.classes_.tolist() == sorted(set(Y))


def test_a_family_has_tasks_of_several_kinds(causal, tmp_path):
    from cuecraft.methods.train.multitask import MultitaskTuning

    family = PromptFamily(causal, MultitaskTuning(epochs=2, prompt_length=3))
    family.fit({"mood": (X, Y), "pick": (ASKED, PLACES)}, {"mood": (X, Y), "pick": (ASKED, PLACES)})
    kinds = {name: artifact.task.answers.kind for name, artifact in family.artifacts.items()}
    assert kinds == {"mood": "labels", "pick": "choices"}
    family.add("again", ASKED, PLACES, (ASKED, PLACES), answers={"kind": "choices", "scoring": "token"})
    family.save(tmp_path / "family")
    loaded = PromptFamily.load(tmp_path / "family", causal)
    for name, texts in (("mood", X), ("pick", ASKED), ("again", ASKED)):
        before, after = (one.classifier(name).decide(texts) for one in (family, loaded))
        assert [dict(own.options) for own in before] == [dict(own.options) for own in after]
    assert loaded.artifacts["again"].task.answers.scoring == "token"


def test_the_next_command_fits_the_rows(causal, tmp_path, capsys):
    """One text is written in the command; rows of several columns stand in a file."""
    pairs = [{"one": text, "two": "so"} for text in X]
    template = "{one} {two}{prompt}{mask}"
    for name, texts, labels, more in (
        ("plain", X, Y, {}),
        ("pairs", pairs, Y, {"template": template}),
        ("pick", ASKED, PLACES, {"answers": "choices"}),
    ):
        PromptClassifier(causal, "zero-shot", **more).fit(texts, labels).save(tmp_path / name)
        print_next(str(tmp_path / name))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('plain "some text"')
    assert lines[1].endswith("pairs --file rows.jsonl (rows with one, two)")
    assert lines[2].endswith("pick --file rows.jsonl (rows with text, choices)")


def test_errors_of_a_family_are_shown_without_their_minus(causal, tmp_path, capsys):
    folder = tmp_path / "family" / "tasks" / "stars"
    PromptClassifier(causal, "zero-shot").fit(X, Y).save(folder)
    tasks = {"stars": {"train_neg_mean_absolute_error": -1.25, "dev_neg_mean_absolute_error": -1.5}}
    print_family({"tasks": tasks, "family": str(tmp_path / "family"), "seconds": 1.0})
    plain = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "stars 1.250 1.500 - mean absolute error" in plain
    assert plain.endswith('tasks/stars "some text"')


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    put("train.jsonl", [{**row, "answer": place} for row, place in zip(ASKED, PLACES, strict=True)])
    put("asked.jsonl", ASKED)
    return put


TUNE = ("tune", "train.jsonl", "--dev", "train.jsonl", "--test", "train.jsonl", "--method", "prompt-tuning")


@pytest.mark.usefixtures("files")
def test_a_file_shows_its_kind_and_is_tuned_and_predicted(run, causal_folder, causal):
    words = (*TUNE, "--option", "epochs=2", "--model", causal_folder, "--out", "runs/a", "--answer-option")
    code, out, err = run(*words, "scoring=token", "--json")
    assert code == 0
    assert "warning: train.jsonl: answers are taken to be of kind choices: rows have options in 'choices'" in err
    document = json.loads(out)
    assert (document["answers"], document["primary"], document["label_words"]) == ("choices", "accuracy", {})
    assert {"dev_accuracy", "test_accuracy", "untuned_test_accuracy", "test_mean_reciprocal_rank"} <= set(
        document["metrics"]
    )
    code, out, err = run("predict", "runs/a", "--file", "asked.jsonl", "--json")
    assert code == 0
    predictor = Predictor.load("runs/a")
    expected = predictor.decide(predictor.examples(ASKED))
    for row, own in zip(json.loads(out)["predictions"], expected, strict=True):
        assert row["value"] == own.value
        assert row["confidence"] == own.confidence
        assert row["options"] == dict(own.options)
    assert predictor.task.answers.scoring == "token"
    hits = [own.value == place for own, place in zip(expected, PLACES, strict=True)]
    assert document["metrics"]["test_accuracy"] == pytest.approx(np.mean(hits))
    assert "answers" in run("show", "runs/a")[1]
    code, out, err = run("predict", "runs/a", "fine")
    assert (code, out) == (2, "")
    assert "error: each text brings options of its own; give them in column 'choices' of a --file" in err


@pytest.mark.usefixtures("files")
def test_seeds_are_averaged_over_answers_of_any_kind(run, causal_folder):
    words = ("--model", causal_folder, "--method", "zero-shot", "--answers", "choices", "--seeds", "0,1", "--out", "s")
    code, out, _ = run("tune", "train.jsonl", "--test", "train.jsonl", *words, "--json")
    assert code == 0
    document = json.loads(out)
    assert {"test_accuracy", "test_mean_reciprocal_rank"} <= set(document["spread"])
    assert document["ensemble_test_accuracy"] == pytest.approx(document["spread"]["test_accuracy"]["mean"])
    assert run("predict", "s", "--file", "asked.jsonl")[0] == 0


BAD = {
    "unknown kind": ((), ("--answers", "choice"), "unknown kind of answers 'choice'"),
    "unknown option": ((), ("--answers", "choices", "--answer-option", "a=b"), "has no option 'a'"),
    "no pair": ((), ("--answer-option", "a"), "'a' is not NAME=VALUE"),
    "an answer outside": ([{"text": "a", "choices": ["x", "y"], "answer": 2}], (), "bad.jsonl line 1: answer 2"),
    "one option": ([{"text": "a", "choices": ["x"], "answer": 0}], (), "bad.jsonl line 1: only one option"),
    "no options": ([{"text": "a", "answer": 0}], ("--answers", "choices"), "bad.jsonl line 1: no column 'choices'"),
    "two kinds": ([{"text": "a", "labels": ["x"], "spans": []}], (), "say which with --answers"),
    "words searched": ((), ("--label-words", "auto"), "label words are searched for labels"),
    "a search without labels": ((), ("--unlabeled", "--classes", "a,b", "--answers", "choices"), "--unlabeled chooses"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(run, files, causal_folder, name):
    rows, words, what = BAD[name]
    data = files("bad.jsonl", rows) if rows else "train.jsonl"
    code, out, err = run("tune", data, "--model", causal_folder, *words)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert what in errors[0]


def test_every_kind_is_registered_on_both_sides():
    assert set(ANSWERS) == set(OBJECTIVES)


@pytest.mark.parametrize("kind", ["multilabel", "ordinal"])
def test_scores_on_dev_are_the_artifacts_own(kind, causal):
    """What decisions take from held-out answers, such as thresholds, counts in scores too."""
    texts = [text for text, _ in TEXTS]
    labels = {
        "multilabel": [["good"], ["dull"], ["good", "new"], ["new"], ["dull"], ["good"], ["new", "dull"], ["good"]],
        "ordinal": [4.0, 1.0, 2.5, 4.0, 1.0, 1.0, 3.5, 2.5],
    }[kind]
    values = {"values": {"bad": 1.0, "dull": 2.5, "great": 4.0}} if kind == "ordinal" else {}
    asked = {"answers": {"kind": kind, **values}, "method_options": {"calibration": "fitted"}}
    classifier = PromptClassifier(causal, "zero-shot", **asked)
    found = classifier.fit(texts, labels, dev=(texts, labels)).scores(texts, labels)
    primary = classifier.task_.answers.primary
    assert found["tuned"][primary] == pytest.approx(classifier.artifact_.manifest.metrics[f"dev_{primary}"])
    assert found["calibrated"] == pytest.approx(found["tuned"])
    assert found["untuned"] != pytest.approx(found["calibrated"])
