"""Verifying runs, and comparing two; through the command line."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import DATA
from cuecraft.methods.problem import Selection
from cuecraft.runs import RunFolder, compare_runs, load_recipe, run_recipe, verify
from recipes import recipe, write_recipe

ROOT = Path(__file__).parents[1]


def test_verify_repeats_a_run_in_a_fresh_process_from_another_folder(causal_folder, tmp_path, command, monkeypatch):
    """It sees the data where it was: a row, or a text to draw words from, that changed is named, and nothing is run."""
    corpus = tmp_path / "words.txt"
    corpus.write_text("the film was a joy and the plot was good\n" * 5)
    search = {"steps": 2, "candidates": 6, "prompt_length": 4, "vocabulary": {"corpus": "words.txt"}}
    tune = {"method": "hybrid", "search": search, "tune": {"epochs": 4}}
    write_recipe("hybrid", tmp_path, causal_folder, tune=tune)
    assert command("run", "hybrid.yaml", "data.train=train.jsonl")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = command("verify", "../runs/hybrid", "--exact", "--json")
    found = json.loads(out)
    assert code == 0, out
    assert found["reason"] == "the same, bit for bit"
    assert {row["verdict"] for row in found["rows"]} == {"equal"}
    written = corpus.read_text()
    corpus.write_text(written.replace("good", "bad"))
    code, out, _ = command("verify", "../runs/hybrid")
    assert code == 1
    assert "the data changed: data: tune.search.vocabulary.corpus" in out
    corpus.write_text(written)
    flip_first_label(tmp_path / "train.jsonl")
    code, out, _ = command("verify", "../runs/hybrid")
    assert code == 1
    assert out.rstrip().endswith("the data changed: data: train")
    assert "not compared" in out


def flip_first_label(path):
    rows = path.read_text().splitlines()
    first = json.loads(rows[0])
    other = {"positive": "negative", "negative": "positive"}[first["label"]]
    rows[0] = json.dumps(first | {"label": other})
    path.write_text("\n".join(rows) + "\n")


def test_verify_looks_at_the_stored_result_first(causal_folder, tmp_path, command):
    write_recipe("deep-cue", tmp_path, causal_folder)
    assert command("run", "deep-cue.yaml")[0] == 0
    for name in ("tensor", "manifest", "trace", "missing"):
        shutil.copytree(tmp_path / "runs" / "deep-cue", tmp_path / "runs" / name)
        artifact = tmp_path / "runs" / name / "artifact"
        if name == "tensor":
            content = bytearray((artifact / "prompt.safetensors").read_bytes())
            content[-1] ^= 1
            (artifact / "prompt.safetensors").write_bytes(content)
        elif name == "manifest":
            text = (artifact / "manifest.json").read_text()
            (artifact / "manifest.json").write_text(text.replace('"seed": 3', '"seed": 4'))
        elif name == "trace":
            with (artifact / "trace.jsonl").open("a") as handle:
                handle.write("[1]\n")
        else:
            (artifact / "trace.jsonl").unlink()
        code, out, _ = command("verify", f"runs/{name}")
        assert code == 1, name
        assert "the stored result is not what the run made" in out, name


def test_two_runs_that_differ_say_in_which_step_first(causal_folder, tmp_path, command, monkeypatch):
    """The second run is of the same recipe on another machine, as it were: one loss differs in its last digits."""
    asked = recipe("deep-cue", tmp_path, causal_folder)
    plain = run_recipe(asked, tmp_path / "a")
    note = Selection.note

    def off(self, event):
        is_it = event.phase == "deep-cue" and event.step == 2
        note(self, replace(event, train_loss=event.train_loss + 1e-12) if is_it else event)

    with monkeypatch.context() as patch:
        patch.setattr(Selection, "note", off)
        other = run_recipe(asked, tmp_path / "b")
    first, second = RunFolder(plain.folder), RunFolder(other.folder)
    found = compare_runs(first, second)
    assert found.is_same
    assert not found.is_exact
    assert found.reason.startswith("the same within tolerance; the first step that differs: artifact, event ")
    assert "(deep-cue 2): train_loss" in found.reason
    for off_by, is_same in ((0.004, True), (0.006, False)):  # half a point is allowed
        metrics = {**other.record.metrics, "test_accuracy": plain.record.metrics["test_accuracy"] + off_by}
        second.write(other.record.model_copy(update={"metrics": metrics}))
        found = compare_runs(first, second)
        assert found.is_same is is_same
        assert ("differs in test_accuracy" in found.reason) is not is_same


@pytest.fixture
def in_this_process(monkeypatch):
    """Let runs be repeated here: that it is done in a process of its own is what the first test shows."""

    def again(path, target, surroundings):
        run_recipe(load_recipe(path / "recipe.yaml"), target)

    monkeypatch.setattr("cuecraft.runs.verifying._run_again", again)


def test_verify_exits_by_the_tolerance(causal_folder, tmp_path, command, in_this_process):
    write_recipe("zero-shot", tmp_path, causal_folder)
    assert command("run", "zero-shot.yaml")[0] == 0
    folder = RunFolder(tmp_path / "runs" / "zero-shot")
    record = folder.record()
    for off_by, code, *words in ((0.004, 0), (0.004, 1, "--exact"), (0.006, 1)):
        metrics = {**record.metrics, "test_accuracy": record.metrics["test_accuracy"] + off_by}
        folder.write(record.model_copy(update={"metrics": metrics}))
        assert command("verify", "runs/zero-shot", *words)[0] == code


BAD = {
    "no run": ("here", None, "no run here (run.json is missing); check the path"),
    "damaged record": ("runs/a", "run.json", "is damaged"),
    "damaged recipe": ("runs/a", "recipe.yaml", "recipe.yaml"),
    "damaged environment": ("runs/a", "environment.json", "cannot be read"),
    "empty environment": ("runs/a", "environment.json", "cannot be read"),
    "folder that is gone": ("runs/a", "folder", "was run in /gone, which is not there"),
    "not finished": ("runs/a", "status", "the run is stopped, not finished; finish it with --resume first"),
}


@pytest.fixture(scope="module")
def plain_run(causal_folder, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("plain")
    return run_recipe(recipe("zero-shot", folder, causal_folder), folder / "run").folder


@pytest.mark.parametrize("name", BAD)
def test_verify_says_what_is_wrong_with_a_run(name, plain_run, tmp_path, command):
    where, what, message = BAD[name]
    (tmp_path / "here").mkdir()
    folder = RunFolder(shutil.copytree(plain_run, tmp_path / "runs" / "a"))
    if what == "status":
        folder.write(folder.record().model_copy(update={"status": "stopped"}))
    elif what == "folder":
        surroundings = json.loads((folder.path / "environment.json").read_text())
        (folder.path / "environment.json").write_text(json.dumps(surroundings | {"folder": "/gone"}))
    elif what:
        (folder.path / what).write_text("{}" if name == "empty environment" else "{")
    code, _, err = command("verify", where)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_runs_are_listed_and_compared(causal_folder, tmp_path, command):
    write_recipe("deep-cue", tmp_path, causal_folder)
    assert command("run", "deep-cue.yaml")[0] == 0
    assert command("run", "deep-cue.yaml", "tune.learning_rate=0.2")[0] == 0
    code, out, _ = command("runs", "ls", "--json")
    assert code == 0
    assert [row["folder"] for row in json.loads(out)["runs"]] == ["runs/deep-cue", "runs/deep-cue-2"]
    code, out, _ = command("runs", "diff", "runs/deep-cue", "runs/deep-cue-2", "--json")
    found = json.loads(out)
    assert found["differences"] == [{"key": "recipe tune.learning_rate", "before": "0.1", "now": "0.2"}]
    steps = next(row for row in found["rows"] if row["what"] == "steps")
    assert steps["verdict"] == "differs"
    assert "(deep-cue 1): " in steps["before"]
    code, out, _ = command("runs", "diff", "runs/deep-cue", "runs/deep-cue-2")
    assert "tune.learning_rate" in out
    (tmp_path / "runs" / "deep-cue-2" / "run.json").write_text("{")
    code, out, _ = command("runs", "ls", "--json")
    assert [row["status"] for row in json.loads(out)["runs"]] == ["finished", "damaged"]
    code, _, err = command("runs", "ls", "nowhere")
    assert code == 2
    assert "nowhere: no such folder; run a recipe first" in err


@pytest.mark.slow
def test_the_shipped_sentiment_recipe_verifies_and_a_flipped_label_is_named(tmp_path):
    if not DATA.is_dir():
        pytest.skip(f"benchmark data is not at {DATA}; set CUECRAFT_DATA")
    shutil.copytree(DATA / "fewshot" / "sst-2", tmp_path / "data" / "fewshot" / "sst-2", copy_function=shutil.copyfile)
    environment = {**os.environ, "CUECRAFT_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "2"}

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "cuecraft", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    found = command("run", str(ROOT / "recipes" / "sentiment-16shot.yaml"), "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["as_expected"] is True
    found = command("verify", "runs/sentiment-16shot", "--exact")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the same, bit for bit" in found.stdout
    flip_first_label(tmp_path / "data" / "fewshot" / "sst-2" / "seed-13" / "train.jsonl")
    found = command("verify", "runs/sentiment-16shot")
    assert found.returncode == 1
    assert "the data changed: data: train" in found.stdout


def test_verify_in_python_keeps_the_second_run(causal_folder, tmp_path, in_this_process):
    finished = run_recipe(recipe("zero-shot", tmp_path, causal_folder), tmp_path / "run")
    found = verify(finished.folder, tmp_path / "again", lambda part: None)
    assert found.is_exact
    assert RunFolder(tmp_path / "again").record().artifacts == finished.record.artifacts
