"""Runs: what lies in their folder, where they go, what they were made on; through the command line."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TEXTS, records
from cuecraft.core.environment import deterministic
from cuecraft.core.errors import RunError, StoppedError
from cuecraft.data import fingerprint
from cuecraft.runs import RunFolder, find_runs, run_recipe
from cuecraft.runs.session import run_folder
from recipes import recipe, write_recipe

ROOT = Path(__file__).parents[1]


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
    for where in ("runs/deep-cue/artifact", "runs/deep-cue"):
        code, out, _ = command("predict", where, "a joy from start to finish", "--json")
        assert code == 0
        assert json.loads(out)["artifact"] == "runs/deep-cue/artifact"


def test_folders_are_numbered_and_unfinished_runs_are_not_overwritten(causal_folder, tmp_path, command):
    write_recipe("zero-shot", tmp_path, causal_folder)
    (tmp_path / "runs" / "zero-shot").mkdir(parents=True)  # as `make demo` leaves an artifact in runs/demo
    (tmp_path / "runs" / "zero-shot" / "manifest.json").write_text("{}")
    assert json.loads(command("run", "zero-shot.yaml", "--json")[1])["folder"] == "runs/zero-shot-2"
    shutil.rmtree(tmp_path / "runs")
    for expected in ("runs/zero-shot", "runs/zero-shot-2", "runs/zero-shot-3"):
        assert json.loads(command("run", "zero-shot.yaml", "--json")[1])["folder"] == expected
    # Resuming what is finished changes nothing and says what there is.
    code, out, _ = command("run", "zero-shot.yaml", "--resume", "--json")
    assert (code, json.loads(out)["folder"]) == (0, "runs/zero-shot-3")
    code, _, err = command("runs", "diff", "runs", "runs/zero-shot")
    assert code == 2
    assert "runs: no run here (run.json is missing)" in err
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
    from cuecraft.core import environment as determinism

    replaced = []
    monkeypatch.setattr(determinism.os, "execve", lambda *words: replaced.append(words))
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    determinism.restart_with_fixed_hashes(["run", "x.yaml"])
    (_, words, environment), *others = replaced
    assert not others
    assert words[1:] == ["-P", "-m", "cuecraft", "run", "x.yaml"]
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


def test_files_of_the_user_are_never_touched(causal_folder, tmp_path, command):
    (tmp_path / "exp" / ".git").mkdir(parents=True)
    (tmp_path / "exp" / ".git" / "config").write_text("mine")
    write_recipe("zero-shot", tmp_path / "exp", causal_folder)
    (tmp_path / "exp" / "zero-shot.yaml").rename(tmp_path / "exp" / "recipe.yaml")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words in (["data.train=none.jsonl"], []):
        code, _, err = command("run", "exp/recipe.yaml", *words, "--out", "exp")
        assert code == 2
        assert "exp: exists and is no run" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recipe.yaml").write_text("mine")
    assert command("run", "exp/recipe.yaml", "--out", "own")[0] == 2
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    code, _, err = command("run", "exp/recipe.yaml", "--out", "link")
    assert code == 2
    assert "link: exists and is no run" in err
    code, _, err = command("run", "exp/recipe.yaml", "--out", "x" * 300)
    assert code == 2
    assert "choose another --out" in err


def test_data_that_changes_while_it_runs_is_told(causal_folder, tmp_path):
    asked = recipe("seeds", tmp_path, causal_folder)

    def add_a_row(part):
        if "seed 1" in part and "testing" in part:
            with (tmp_path / "train.jsonl").open("a") as handle:
                handle.write('{"text": "one more", "label": "positive"}\n')
        return lambda event: None

    with pytest.raises(RunError, match=r"the data \(train, seed 1\) changed while it ran"):
        run_recipe(asked, tmp_path / "run", started=add_a_row)
    assert RunFolder(tmp_path / "run").record().status == "failed"


def test_a_run_that_began_with_one_number_of_threads_ends_with_it(causal_folder, tmp_path):
    asked = recipe("deep-cue", tmp_path, causal_folder, threads=None)
    begun = run_recipe(asked, tmp_path / "run")
    RunFolder(begun.folder).write(begun.record.model_copy(update={"status": "stopped"}))
    seen = []
    torch.set_num_threads(2)
    try:
        run_recipe(asked, begun.folder, resume=True, started=lambda part: seen.append(torch.get_num_threads()) or print)
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}


def test_the_commands_process_is_replaced_and_keeps_to_its_own_modules(causal_folder, tmp_path):
    """A real process, in a folder with files that are called like modules."""
    write_recipe("zero-shot", tmp_path, causal_folder)
    for name in ("yaml", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    program = Path(sys.executable).parent / "cuecraft"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    found = subprocess.run(
        [program, "run", "zero-shot.yaml", "--json"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert found.returncode == 0, found.stderr
    surroundings = json.loads((tmp_path / "runs" / "zero-shot" / "environment.json").read_text())
    assert surroundings["determinism"]["PYTHONHASHSEED"] == "0"
    assert surroundings["versions"]["torch"] == torch.__version__


def test_the_first_rows_are_learnt_from_and_the_later_ones_tested_on(causal_folder, tmp_path, command):
    write_recipe("zero-shot", tmp_path, causal_folder)
    rows = (tmp_path / "train.jsonl").read_text() + (tmp_path / "dev.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(rows)
    words = ("tune", "log.jsonl", "--model", causal_folder, "--method", "zero-shot", "--first", "6")
    code, out, _ = command(*words, "--json")
    assert code == 0
    assert json.loads(out)["test_rows"] == 2
    manifest = json.loads((tmp_path / "runs" / "zero-shot-0" / "manifest.json").read_text())
    assert manifest["data"]["test"]["sha256"] == fingerprint(records(TEXTS[6:]))
    assert manifest["data"]["train"]["rows"] + manifest["data"]["dev"]["rows"] == 6
    code, out, _ = command(*words, "--test", "test.jsonl", "--json")  # given, the later rows are left alone
    assert json.loads(out)["test_rows"] == 6
    code, _, err = command(*words[:-1], "8")
    assert code == 2
    assert "--first 8 leaves no row of log.jsonl to test on; lower it, or give --test" in err
    assert command(*words[:-1], "8", "--test", "test.jsonl")[0] == 0


def test_data_that_changed_is_not_gone_on_with(causal_folder, tmp_path):
    asked = recipe("zero-shot", tmp_path, causal_folder)
    finished = run_recipe(asked, tmp_path / "run")
    RunFolder(tmp_path / "run").write(finished.record.model_copy(update={"status": "stopped"}))
    with (tmp_path / "train.jsonl").open("a") as handle:
        handle.write('{"text": "one more", "label": "positive"}\n')
    with pytest.raises(RunError, match=r"the data \(train\) changed since the run began"):
        run_recipe(asked, tmp_path / "run", resume=True)


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


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_trackers_go_on_with_a_run_that_was_stopped(name, causal_folder, tmp_path):
    pytest.importorskip(name)
    asked = recipe("deep-cue", tmp_path, causal_folder, trackers=[name])
    begun = []

    def stop(event):
        begun.append(event)
        if len(begun) == 6:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError):
        run_recipe(asked, tmp_path / "run", started=lambda part: stop)
    run_recipe(asked, tmp_path / "run", resume=True)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    steps = {event["step"]: event["train_loss"] for event in events if event["phase"] == "deep-cue"}
    assert dict(points_of(name, tmp_path / "run")) == pytest.approx(steps, abs=1e-6)


def losses_of(name, folder):
    return [value for _, value in points_of(name, folder)]


def points_of(name, folder):
    """Steps and training losses that a tracker has."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        return [(event.step, event.value) for event in found.Scalars("deep-cue/deep-cue/train_loss")]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("cuecraft").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "deep-cue/deep-cue/train_loss")
    return sorted({m.step: m.value for m in history}.items())


def test_a_tracker_that_is_not_installed_is_named(causal_folder, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for module in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    write_recipe("zero-shot", tmp_path, causal_folder)
    code, _, err = command("run", "zero-shot.yaml", "trackers=[tensorboard]")
    assert code == 2
    assert "pip install 'cuecraft[tensorboard]', or leave it out" in err
    assert not (tmp_path / "runs" / "zero-shot").exists()
