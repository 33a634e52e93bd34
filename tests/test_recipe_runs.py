"""Runs: what lies in their folder, verifying them, comparing two; through the command line."""

import json
import os
import random

import numpy as np
import pytest
import torch

from cuecraft.determinism import deterministic
from cuecraft.errors import RunError
from cuecraft.recipe import RunFolder, compare_runs, differences, find_runs, run_recipe, verify
from cuecraft.recipe.running import run_folder
from recipes import JOBS, recipe, write_recipe


@pytest.fixture
def command(run, monkeypatch):
    """The `run` fixture, with the seed of hashes already fixed, so that no process is replaced."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    return run


def test_a_run_leaves_all_that_is_needed_to_repeat_it(causal_folder, tmp_path, command):
    write_recipe("deep-cue", tmp_path, causal_folder)
    code, out, _ = command("run", "deep-cue.yaml", "tune.epochs=3", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["folder"] == "runs/deep-cue"
    assert found["status"] == "finished"
    folder = tmp_path / "runs" / "deep-cue"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"recipe.yaml", "environment.json", "run.json", "events.jsonl", "state", "artifact"}
    surroundings = json.loads((folder / "environment.json").read_text())
    assert surroundings["folder"] == str(tmp_path)
    assert surroundings["threads"] == 1
    assert surroundings["versions"]["torch"] == torch.__version__
    assert surroundings["determinism"]["deterministic_algorithms"] is True
    assert surroundings["determinism"]["PYTHONHASHSEED"] == "0"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["phase"] == "deep-cue"]
    assert [event["step"] for event in trained] == [0, 1, 2, 3]
    assert all({"train_loss", "dev_loss", "seconds", "session", "part"} <= set(event) for event in trained)
    manifest = json.loads((folder / "artifact" / "manifest.json").read_text())
    assert found["artifacts"] == {"artifact": manifest["artifact_sha256"]}
    assert found["backbone"]["sha256"] == manifest["backbone"]["sha256"]
    assert set(found["data"]) == {"train", "dev", "test"}
    code, out, _ = command("predict", "runs/deep-cue/artifact", "a joy from start to finish", "--json")
    assert code == 0


def test_folders_are_numbered_and_unfinished_runs_are_not_overwritten(causal_folder, tmp_path, command):
    write_recipe("zero-shot", tmp_path, causal_folder)
    for expected in ("runs/zero-shot", "runs/zero-shot-2", "runs/zero-shot-3"):
        assert json.loads(command("run", "zero-shot.yaml", "--json")[1])["folder"] == expected
    # Resuming what is finished changes nothing and says what there is.
    code, out, _ = command("run", "zero-shot.yaml", "--resume", "--json")
    assert (code, json.loads(out)["folder"]) == (0, "runs/zero-shot-3")
    assert len(find_runs(tmp_path / "runs")) == 3
    code, _, err = command("run", "zero-shot.yaml", "--out", "runs/zero-shot")
    assert code == 2
    assert "is a finished run; choose another --out or remove it" in err
    code, _, err = command("run", "zero-shot.yaml", "seed=8", "--resume")
    assert code == 2
    assert "was begun with seed = 3, and the recipe now has 8; resume with the same recipe" in err


def test_where_a_run_goes(causal_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = recipe("zero-shot", tmp_path, causal_folder)
    assert str(run_folder(asked, None, resume=True)) == "runs/zero-shot"  # nothing to resume: begin
    finished = run_recipe(asked)
    half = finished.record.model_copy(update={"status": "stopped"})
    RunFolder(tmp_path / "runs" / "zero-shot").write(half)
    assert str(run_folder(asked, None, resume=True)) == "runs/zero-shot"
    with pytest.raises(RunError, match="was not finished"):
        run_folder(asked, None, resume=False)
    assert str(run_folder(asked, tmp_path / "b", resume=False)) == str(tmp_path / "b")


@pytest.mark.parametrize("name", ["taken", "file", "read-only", "no data", "no model"])
def test_what_cannot_begin_leaves_nothing(name, causal_folder, tmp_path, command, monkeypatch):
    write_recipe("zero-shot", tmp_path, causal_folder)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    if name == "read-only":
        monkeypatch.setattr(os, "access", lambda *_: False)
    words, what = {
        "taken": (["--out", "taken"], "taken: exists and is no run; choose another --out or remove it"),
        "file": (["--out", "zero-shot.yaml"], "exists and is no run"),
        "read-only": ([], "cannot be written to; choose another --out"),
        "no data": (["data.train=gone.jsonl"], "gone.jsonl"),
        "no model": (["model.name=./gone"], "gone"),
    }[name]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command("run", "zero-shot.yaml", *words)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert what in errors[0]
    after = [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"]
    assert after == before


def test_verify_repeats_a_run_in_a_fresh_process(causal_folder, tmp_path, command):
    path = write_recipe("hybrid", tmp_path, causal_folder)
    assert command("run", path)[0] == 0
    code, out, _ = command("verify", "runs/hybrid", "--exact", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["reason"] == "the same, bit for bit"
    assert {row["verdict"] for row in found["rows"]} == {"equal"}
    # One label flipped: the data is named, and nothing is run again.
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    flipped = {"positive": "negative", "negative": "positive"}
    first = json.loads(rows[0])
    rows[0] = json.dumps(first | {"label": flipped[first["label"]]})
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    code, out, _ = command("verify", "runs/hybrid")
    assert code == 1
    assert "the data changed: data: train" in out
    assert "not compared" in out


def test_verify_names_the_first_step_that_differs(causal_folder, tmp_path, command):
    path = write_recipe("deep-cue", tmp_path, causal_folder)
    assert command("run", path)[0] == 0
    trace = tmp_path / "runs" / "deep-cue" / "artifact" / "trace.jsonl"
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    number = next(n for n, event in enumerate(events) if event["phase"] == "deep-cue" and event["step"] == 2)
    events[number]["train_loss"] += 1e-12
    trace.write_text("".join(json.dumps(event) + "\n" for event in events))
    record = tmp_path / "runs" / "deep-cue" / "run.json"
    found = json.loads(record.read_text())
    found["metrics"]["test_accuracy"] += 0.006
    record.write_text(json.dumps(found))
    code, out, _ = command("verify", "runs/deep-cue", "--json")
    document = json.loads(out)
    assert code == 1  # six tenths of a point; half a point is allowed
    assert f"artifact, event {number} (deep-cue 2): train_loss" in document["reason"]
    assert "differs in test_accuracy" in document["reason"]
    found["metrics"]["test_accuracy"] -= 0.004
    record.write_text(json.dumps(found))
    code, out, _ = command("verify", "runs/deep-cue", "--json")
    assert code == 0
    assert json.loads(out)["reason"].startswith("the same within tolerance; the first step that differs: artifact")
    assert command("verify", "runs/deep-cue", "--exact")[0] == 1


BAD = {
    "no run": ("here", None, "no run here (run.json is missing); check the path"),
    "damaged record": ("runs/a", "run.json", "is damaged"),
    "damaged recipe": ("runs/a", "recipe.yaml", "recipe.yaml"),
    "damaged environment": ("runs/a", "environment.json", "cannot be read"),
    "folder that is gone": ("runs/a", "folder", "was run in /gone, which is not there"),
    "not finished": ("runs/a", "status", "the run is stopped, not finished; finish it with --resume first"),
}


@pytest.mark.parametrize("name", BAD)
def test_verify_says_what_is_wrong_with_a_run(name, causal_folder, tmp_path, command):
    where, what, message = BAD[name]
    (tmp_path / "here").mkdir()
    finished = run_recipe(recipe("zero-shot", tmp_path, causal_folder), tmp_path / "runs" / "a")
    if what == "status":
        RunFolder(finished.folder).write(finished.record.model_copy(update={"status": "stopped"}))
    elif what == "folder":
        surroundings = RunFolder(finished.folder).environment()
        (finished.folder / "environment.json").write_text(json.dumps(surroundings | {"folder": "/gone"}))
    elif what:
        (finished.folder / what).write_text("{")
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
    assert "(deep-cue 1): train_loss" in steps["now"] or "(deep-cue 1): dev_loss" in steps["now"]
    code, out, _ = command("runs", "diff", "runs/deep-cue", "runs/deep-cue-2")
    assert "tune.learning_rate" in out
    code, _, err = command("runs", "ls", "nowhere")
    assert code == 2
    assert "nowhere: no such folder; run a recipe first" in err


@pytest.mark.parametrize("name", JOBS)
def test_every_method_repeats_itself_bit_for_bit(name, causal_folder, tmp_path):
    asked = recipe(name, tmp_path, causal_folder)
    first, second = (run_recipe(asked, tmp_path / part) for part in ("a", "b"))
    found = compare_runs(RunFolder(first.folder), RunFolder(second.folder))
    assert found.is_exact, found
    assert not differences(RunFolder(first.folder), RunFolder(second.folder))


def test_global_generators_are_seeded_in_one_place_and_given_back():
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with deterministic(5):
            assert torch.are_deterministic_algorithms_enabled()
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    with deterministic(6):
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    assert not torch.are_deterministic_algorithms_enabled()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_seed_of_hashes_is_fixed_before_anything_else(causal_folder, tmp_path, monkeypatch):
    """The command replaces its own process where hashes are salted, once, with all its arguments."""
    from cuecraft import determinism

    replaced = []
    monkeypatch.setattr(determinism.os, "execve", lambda *words: replaced.append(words))
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    determinism.restart_with_fixed_hashes(["run", "x.yaml"])
    (_, words, environment), *others = replaced
    assert not others
    assert words[1:] == ["-m", "cuecraft", "run", "x.yaml"]
    assert environment["PYTHONHASHSEED"] == "0"
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    determinism.restart_with_fixed_hashes(["run", "x.yaml"])
    assert len(replaced) == 1


def test_what_is_expected_is_held_against_what_came(causal_folder, tmp_path, command):
    write_recipe("zero-shot", tmp_path, causal_folder, expect={"metrics": {"test_accuracy": 0.9}, "seconds": 9})
    code, out, _ = command("run", "zero-shot.yaml")
    assert code == 0
    assert "not what the recipe expects" in out
    assert "0.900 ± 0.005" in out
    assert "when the recipe was written: 9 s" in out
    code, out, _ = command("run", "zero-shot.yaml", "expect.tolerance=1")
    assert "as the recipe expects" in out


def test_data_that_changed_is_not_gone_on_with(causal_folder, tmp_path):
    asked = recipe("zero-shot", tmp_path, causal_folder)
    finished = run_recipe(asked, tmp_path / "run")
    RunFolder(tmp_path / "run").write(finished.record.model_copy(update={"status": "stopped"}))
    with (tmp_path / "train.jsonl").open("a") as handle:
        handle.write('{"text": "one more", "label": "positive"}\n')
    with pytest.raises(RunError, match=r"the data \(train\) changed since the run began"):
        run_recipe(asked, tmp_path / "run", resume=True)


def test_verify_in_python_keeps_the_second_run(causal_folder, tmp_path):
    finished = run_recipe(recipe("zero-shot", tmp_path, causal_folder), tmp_path / "run")
    found = verify(finished.folder, tmp_path / "again", lambda part: None)
    assert found.is_exact
    assert RunFolder(tmp_path / "again").record().artifacts == finished.record.artifacts


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_trackers_hear_of_every_step_and_change_nothing(name, causal_folder, tmp_path):
    pytest.importorskip(name)
    plain = run_recipe(recipe("deep-cue", tmp_path, causal_folder), tmp_path / "plain")
    asked = recipe("deep-cue", tmp_path, causal_folder, trackers=[name])
    tracked = run_recipe(asked, tmp_path / "tracked")
    assert tracked.record.artifacts == plain.record.artifacts
    events = [json.loads(line) for line in (tmp_path / "tracked" / "events.jsonl").read_text().splitlines()]
    losses = [event["train_loss"] for event in events if event["phase"] == "deep-cue"]
    assert losses_of(name, tmp_path / "tracked") == pytest.approx(losses, abs=1e-6)


def losses_of(name, folder):
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        return [event.value for event in found.Scalars("deep-cue/deep-cue/train_loss")]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("cuecraft").experiment_id])
    return [m.value for m in client.get_metric_history(run.info.run_id, "deep-cue/deep-cue/train_loss")]


def test_a_tracker_that_is_not_installed_is_named(causal_folder, tmp_path, command, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for module in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    write_recipe("zero-shot", tmp_path, causal_folder)
    code, _, err = command("run", "zero-shot.yaml", "trackers=[tensorboard]")
    assert code == 2
    assert "pip install 'cuecraft[tensorboard]', or leave it out" in err
    assert not (tmp_path / "runs" / "zero-shot").exists()
