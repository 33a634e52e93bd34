"""The leaderboard and the demo, on a tiny model and tiny data."""

import json
import math
import sys

import pytest

from conftest import LABELS, TEXTS, make_examples, tiny_problem
from cuecraft import cli
from cuecraft.compare import demo, run_methods, wilson_interval
from cuecraft.data import Record
from cuecraft.method import label_context, score


@pytest.mark.parametrize(("accuracy", "count"), [(0.0, 10), (0.5, 40), (0.8, 300), (1.0, 25)])
def test_wilson_ends_are_where_the_normal_test_just_rejects(accuracy, count):
    # The interval's defining property: |accuracy - p| equals z standard errors *under p* at both ends.
    for end in wilson_interval(accuracy, count):
        if 0 < end < 1:
            assert abs(accuracy - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / count), rel=1e-6)
        else:
            assert end == accuracy


def test_rows_hold_what_each_method_found(causal):
    problem = tiny_problem(causal)
    test = label_context(causal, problem.task, make_examples())
    methods = [("zero-shot", "zero-shot", {}), ("tuned", "prompt-tuning", {"epochs": 8, "learning_rate": 0.1})]
    heard = []
    board = run_methods(problem, test, methods, lambda name: lambda event: heard.append(name))
    assert [row.name for row in board.rows] == ["zero-shot", "tuned"]
    assert set(heard) == {"zero-shot", "tuned"}
    for row in board.rows:
        assert row.test == score(causal, row.outcome.best, test)
        assert row.interval[0] <= row.test.accuracy <= row.interval[1]
    plain, tuned = board.rows
    assert plain.tuned_parameters == 0
    assert tuned.tuned_parameters == len(problem.initial_ids) * 32
    assert tuned.stored_bytes >= tuned.tuned_parameters * 4
    assert board.winner is min(board.rows, key=lambda row: row.dev.loss)


@pytest.fixture
def small_demo(monkeypatch, causal_folder, tmp_path):
    rows = [Record({"text": f"{text} {n}"}, LABELS[label]) for n in range(6) for text, label in TEXTS]
    monkeypatch.setattr(demo, "MODEL", str(causal_folder))
    monkeypatch.setattr(demo, "read_records", lambda name: sorted(rows, key=lambda row: str(row.label)))
    fast = {"autoprompt": {"steps": 1, "candidates": 3}, "prompt-tuning": {"epochs": 2}}
    fast["auto"] = {"preset": "fast"}
    methods = tuple((name, kind, fast.get(name, options)) for name, kind, options in demo.METHODS)
    monkeypatch.setattr(demo, "METHODS", methods)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["cuecraft", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


def test_the_demo_leaves_a_leaderboard_and_a_prompt_that_predicts(small_demo, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "demo", "--shots", "4", "--test-size", "20", "--json")
    assert code == 0
    document = json.loads(out)
    assert [row["method"] for row in document["leaderboard"]] == [name for name, _, _ in demo.METHODS]
    assert document["test_size"] == 20
    assert len(document["predictions"]) == 3
    assert {p["true_label"] for p in document["predictions"]} == set(LABELS)
    assert "auto" in err
    code, out, _ = command(monkeypatch, capsys, "predict", "runs/demo", "a joy from start to finish", "--json")
    assert code == 0
    assert json.loads(out)["predictions"][0]["label"] in LABELS
    manifest = json.loads((small_demo / "runs" / "demo" / "manifest.json").read_text())
    assert manifest["data"]["test"]["rows"] == 20
    assert "test_accuracy" in manifest["metrics"]


def test_the_demo_for_people(small_demo, monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "demo", "--shots", "4", "--test-size", "20")
    assert code == 0
    for words in ("accuracy", "95% interval", "best prompt in words", "cuecraft predict runs/demo"):
        assert words in out
