"""Runs that are killed, stopped, or out of room, and go on to the bits of an unbroken one."""

import errno
import json
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest

import cuecraft.storage
from cuecraft.errors import CuecraftWarning, MethodError, RunError, StoppedError
from cuecraft.recipe import RunFolder, run_recipe
from cuecraft.recipe.events import EventFile
from recipes import JOBS, recipe

FINISHED, STOPPED, BROKEN = 0, 4, 5


def forked(asked, out, resume=False):
    """Run a recipe in a child of this process; return its pid and a pipe that gets a byte for each step."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = BROKEN
    try:
        os.close(reading)
        warnings.simplefilter("ignore", CuecraftWarning)
        run_recipe(asked, out, resume=resume, started=lambda part: lambda event: os.write(writing, b"."))
        code = FINISHED
    except StoppedError:
        code = STOPPED
    finally:
        os._exit(code)


def steps_of(pid, pipe, most=None):
    """Wait for a child to take some steps, or all; return how many it took."""
    taken = 0
    while most is None or taken < most:
        found = os.read(pipe, 1)
        if not found:
            break
        taken += 1
    return taken


def ended(pid, pipe):
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_three_times(asked, out, steps, pause):
    """Kill a run at three random moments; return at how many steps each session was."""
    chance = random.Random(asked.name)
    reached = []
    for number in range(3):
        pid, pipe = forked(asked, out, resume=number > 0)
        reached.append(steps_of(pid, pipe, chance.randint(1, max(1, steps - 1))))
        time.sleep(chance.random() * pause)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid, pipe) in (-signal.SIGKILL, FINISHED)
    return reached


@pytest.mark.parametrize("name", JOBS)
def test_killed_three_times_it_ends_with_the_bits_of_an_unbroken_run(name, causal_folder, tmp_path):
    asked = recipe(name, tmp_path / "asked", causal_folder)
    pid, pipe = forked(asked, tmp_path / "whole")
    steps = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    whole = RunFolder(tmp_path / "whole").record()
    assert whole.artifacts
    kill_three_times(asked, tmp_path / "broken", steps, 0.05)
    pid, pipe = forked(asked, tmp_path / "broken", resume=True)
    steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    broken = RunFolder(tmp_path / "broken").record()
    assert broken.artifacts == whole.artifacts
    assert broken.metrics == whole.metrics
    lines = (tmp_path / "broken" / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)  # no half line, whatever was killed when


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoprompt", "straight-through", "p-tuning", "deep-cue", "lora", "full", "soup"])
def test_a_longer_run_goes_on_and_does_not_begin_again(name, causal_folder, tmp_path):
    options = {"autoprompt": {"steps": 40, "prompt_length": 12}, "straight-through": {"steps": 80}}
    tune = {"method": name, **options.get(name, {"epochs": 40, "patience": 40, "batch_size": 2})}
    if name == "soup":
        tune = {"method": name, "members": 3, "deep": {"epochs": 20, "patience": 20, "batch_size": 2}}
    asked = recipe(name, tmp_path / "asked", causal_folder, tune=tune)
    pid, pipe = forked(asked, tmp_path / "whole")
    steps = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    reached = kill_three_times(asked, tmp_path / "broken", steps // 3, 0.02)
    pid, pipe = forked(asked, tmp_path / "broken", resume=True)
    left = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    assert left < steps - sum(reached) // 2
    first, second = (RunFolder(tmp_path / part).record() for part in ("whole", "broken"))
    assert first.artifacts == second.artifacts
    assert second.sessions == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_its_state_and_goes_on(number, causal_folder, tmp_path):
    # States every hour: what there is when it stops was kept because it was asked to.
    tune = {"method": "deep-cue", "epochs": 400, "patience": 400}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune, checkpoint={"seconds": 3600})
    pid, pipe = forked(asked, tmp_path / "run")
    steps_of(pid, pipe, 20)
    os.kill(pid, number)
    taken = 20 + steps_of(pid, pipe)
    assert ended(pid, pipe) == STOPPED
    folder = RunFolder(tmp_path / "run")
    assert folder.record().status == "stopped"
    state = json.loads((folder.path / "state" / "01-deep-cue" / "state.json").read_text())
    assert 15 <= state["epoch"] <= taken
    with pytest.raises(RunError, match=r"was not finished; go on with --resume"):
        run_recipe(asked, folder.path)


def test_a_stop_in_the_middle_of_an_epoch_goes_on_there(causal_folder, tmp_path):
    tune = {"method": "deep-cue", "epochs": 4, "batch_size": 2}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune)
    whole = run_recipe(asked, tmp_path / "whole")
    from cuecraft.checkpoints import Slot

    kept = []
    save = Slot.save

    def counted(self, document, tensors):
        save(self, document, tensors)
        kept.append((document["epoch"], document["taken"]))
        if document["taken"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "save", counted)
        with pytest.raises(StoppedError):
            run_recipe(asked, tmp_path / "broken")
    assert kept == [(1, 1), (1, 2), (1, 3)]  # of four batches
    resumed = run_recipe(asked, tmp_path / "broken", resume=True)
    assert resumed.record.artifacts == whole.record.artifacts
    assert resumed.record.sessions == 2


def test_two_processes_on_one_run_are_one_too_many(causal_folder, tmp_path):
    tune = {"method": "deep-cue", "epochs": 5000, "patience": 5000}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune)
    pid, pipe = forked(asked, tmp_path / "run")
    steps_of(pid, pipe, 2)
    try:
        with pytest.raises(RunError, match="another process is at work on this run"):
            run_recipe(asked, tmp_path / "run", resume=True)
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid, pipe)
    assert RunFolder(tmp_path / "run").record().status == "running"  # what a killed process leaves


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_last_state_usable(causal_folder, tmp_path, monkeypatch):
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder)
    whole = run_recipe(asked, tmp_path / "whole")
    synced = []

    def fills_up(path):
        synced.append(path)
        if len(synced) > 7:
            full()

    with monkeypatch.context() as patch:
        patch.setattr(cuecraft.storage, "_sync", fills_up)
        with pytest.raises(MethodError, match=r"cannot write the training's state \(.*No space left.*make room"):
            run_recipe(asked, tmp_path / "run")
    record = RunFolder(tmp_path / "run").record()
    assert record.status == "failed"
    assert "No space left" in record.error
    resumed = run_recipe(asked, tmp_path / "run", resume=True)
    assert resumed.record.artifacts == whole.record.artifacts
    assert resumed.record.error is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_for_events_says_so(causal_folder, tmp_path, monkeypatch):
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder)
    whole = run_recipe(asked, tmp_path / "whole")
    opened = EventFile.__init__

    def on_a_full_disk(self, path, session):
        opened(self, path, session)
        self._handle.write('{"half": ')
        self._handle.close()
        self._handle = Path("/dev/full").open("w")  # noqa: SIM115

    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "__init__", on_a_full_disk)
        with pytest.raises(RunError, match=r"events.jsonl: cannot be written \(No space left.*go on with --resume"):
            run_recipe(asked, tmp_path / "run")
    assert run_recipe(asked, tmp_path / "run", resume=True).record.artifacts == whole.record.artifacts


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting needs root on Linux")
def test_a_small_disk_that_fills_up(causal_folder, tmp_path):
    import shutil
    import subprocess

    asked = recipe("full", tmp_path / "asked", causal_folder)
    whole = run_recipe(asked, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "size=600k"  # a state of the tiny model's weights and moments fits, the next one beside it does not
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises((MethodError, RunError), match="No space left"):
            run_recipe(asked, disk / "run")
        if (disk / "run").exists():
            shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
    resumed = run_recipe(asked, tmp_path / "run", resume=True)
    assert resumed.record.artifacts == whole.record.artifacts
