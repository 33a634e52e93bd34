"""`cuecraft tune --unlabeled`: what it writes and says, and mistakes."""

import json
import warnings

import numpy as np
import pytest

from conftest import LABELS, TEXTS

TEXT_ONLY = [text for text, _ in TEXTS]
ROWS = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_writes_an_artifact_that_predict_serves(run, tmp_path, causal_folder):
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXT_ONLY])
    test = write(tmp_path / "test.jsonl", ROWS)
    words = ("--label-words", "negative=bad", "--label-words", "positive=good", "--prior", "negative=0.4")
    words = ("tune", data, "--unlabeled", "--model", causal_folder, *words, "--prior", "positive=0.6")
    code, out, err = run(*words, "--test", test, "--json")
    assert code == 0
    assert "are not used" not in err
    document = json.loads(out)
    assert document["method"] == "label-free"
    assert document["texts"] == 8
    assert document["task_type"] == "sentiment"
    assert document["cues"][0]["cue"] == document["prompt"]
    assert document["metrics"]["test_accuracy"] is not None
    assert "train_accuracy" not in document["metrics"]
    predictions = json.loads(run("predict", document["artifact"], *TEXT_ONLY, "--json")[1])["predictions"]
    hits = [found["label"] == row["label"] for found, row in zip(predictions, ROWS, strict=True)]
    assert np.mean(hits) == pytest.approx(document["metrics"]["test_accuracy"])
    manifest = json.loads(run("show", document["artifact"], "--json")[1])
    assert manifest["method_options"]["prior"] == [0.4, 0.6]
    code, out, _ = run(*words)
    assert code == 0
    assert "label-free" in out
    assert "36 cues (sentiment), by 8 texts" in " ".join(out.split())


def test_labels_in_the_data_are_said_to_be_unused_and_change_nothing(run, tmp_path, causal_folder):
    sources = [
        write(tmp_path / "labelled.jsonl", ROWS),
        write(tmp_path / "wrong.jsonl", [row | {"label": "x"} for row in ROWS]),
        tmp_path / "texts.txt",
    ]
    sources[2].write_text("\n".join(TEXT_ONLY) + "\n")
    found = []
    for source in sources:
        with warnings.catch_warnings():
            words = ("--unlabeled", "--classes", "bad,good", "--model", causal_folder, "--json")
            code, out, err = run("tune", source, *words)
        assert code == 0
        assert ("labels in column 'label' are not used" in err) == (source.suffix == ".jsonl")
        document = json.loads(out)
        found.append({name: document[name] for name in ("artifact_sha256", "cues", "prompt")})
    assert found[0] == found[1] == found[2]


def test_cues_that_hardly_agree_cost_one_line_and_leave_their_figure(run, tmp_path, causal_folder):
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXT_ONLY])
    words = ("tune", data, "--unlabeled", "--classes", "bad,good", "--model", causal_folder, "--out", "made", "--json")
    code, out, err = run(*words)
    assert code == 0
    metrics = json.loads(out)["metrics"]
    names = ("cue_agreement", "lowest_cue_agreement")
    lines = [line for line in err.splitlines() if "agree little" in line]
    assert len(lines) == 1
    assert f"mean kappa {metrics['cue_agreement']:.2f}, not above 0.50" in lines[0]
    assert lines[0].startswith("warning: ")
    assert "do not trust this choice; label 16 texts of each class or more and tune with them" in lines[0]
    assert json.loads(run("show", "made", "--json")[1])["metrics"] == {name: metrics[name] for name in names}


def test_cues_that_agree_cost_no_line(run, tmp_path, causal_folder, agreeing):
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXT_ONLY])
    code, out, err = run("tune", data, "--unlabeled", "--classes", "bad,good", "--model", causal_folder, "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["cue_agreement"] == pytest.approx(1)
    assert "trust" not in err


BAD = {
    "no classes": ([], "the classes must be named"),
    "one class": (["--classes", "good"], "only one class"),
    "class twice": (["--classes", "good,bad,good"], "named twice"),
    "words of no class": (["--classes", "a,b", "--label-words", "c=good"], "label words for 'c'"),
    "shares beyond 1": (["--classes", "bad,good", "--prior", "0.9,0.2"], "must each be above 0 and sum to 1"),
    "share of nothing": (["--classes", "bad,good", "--prior", "1,0"], "must each be above 0 and sum to 1"),
    "too many shares": (["--classes", "bad,good", "--prior", "0.5,0.25,0.25"], "3 shares, but there are 2 classes"),
    "share of no class": (["--classes", "bad,good", "--prior", "dull=0.5", "--prior", "bad=0.5"], "names class 'dull'"),
    "share left out": (["--classes", "bad,good", "--prior", "bad=1"], "no share for class 'good'"),
    "no number": (["--classes", "bad,good", "--prior", "half,half"], "is not shares of classes"),
    "dev": (["--classes", "bad,good", "--dev", "texts.jsonl"], "--dev has no meaning with --unlabeled"),
    "shots": (["--classes", "bad,good", "--shots", "2"], "--shots has no meaning with --unlabeled"),
    "method": (["--classes", "bad,good", "--method", "auto"], "--method has no meaning with --unlabeled"),
    "test size": (["--classes", "bad,good", "--test-size", "2"], "--test-size needs --test"),
    "test class": (["--classes", "bad,good", "--test", "labelled.jsonl"], "labelled.jsonl row 1: label 'positive'"),
    "unknown selector": (["--classes", "bad,good", "--option", "selector=luck"], "option 'selector'"),
    "unknown option": (["--classes", "bad,good", "--option", "luck=1"], "no option 'luck'"),
    "no cues": (["--classes", "bad,good", "--option", "pool_file=nowhere.txt"], "no such file; check the path of the"),
    "no room": (["--classes", "bad,good", "--max-tokens", "20"], "allow more tokens"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_cost_one_line_and_exit_code_two(run, tmp_path, causal_folder, name):
    words, what = BAD[name]
    write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXT_ONLY])
    write(tmp_path / "labelled.jsonl", ROWS)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, out, err = run("tune", "texts.jsonl", "--unlabeled", "--model", causal_folder, *words)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1)
    assert what in errors[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_no_texts_and_options_without_the_flag(run, tmp_path, causal_folder):
    write(tmp_path / "empty.jsonl", [])
    (tmp_path / "empty.txt").write_text("\n")
    for data in ("empty.jsonl", "empty.txt"):
        code, _, err = run("tune", data, "--unlabeled", "--classes", "bad,good", "--model", causal_folder)
        assert code == 2
        assert "no rows" in err or "no texts" in err
    write(tmp_path / "labelled.jsonl", ROWS)
    code, _, err = run("tune", "labelled.jsonl", "--prior", "0.5,0.5", "--model", causal_folder)
    assert code == 2
    assert "go with --unlabeled" in err
