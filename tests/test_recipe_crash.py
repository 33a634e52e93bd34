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
from safetensors import safe_open

import cuecraft.artifact.artifact
import cuecraft.core.storage
from children import FINISHED, STOPPED, ended, forked, killed, steps_of
from cuecraft.core.errors import CuecraftWarning, MethodError, RunError, StoppedError
from cuecraft.runs import RunFolder, run_recipe
from cuecraft.runs.session import EventFile
from recipes import JOBS, STATELESS, recipe

#: What the default suite kills: a training, and what joins many. `slow` kills all, and test_checkpoints.py stops and
#: resumes each owner of state within one process.
QUICK = ("deep-cue", "auto")
PAUSE = 0.03  # seconds that a child waits after each step, so that it is alive when it is killed


def running(asked, out, resume=False, pause=0.0, before=lambda: None):
    """Run a recipe in a child of this process; return its pid and a pipe that gets a byte for each step."""

    def work(report):
        warnings.simplefilter("ignore", CuecraftWarning)
        before()
        run_recipe(asked, out, resume=resume, started=lambda part: report)

    return forked(work, pause)


def finished(asked, out, resume=False):
    """Run a recipe to its end in a child; return its record and how many steps it took."""
    pid, pipe = running(asked, out, resume)
    steps = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    return RunFolder(out).record(), steps


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Leave the drawing of reports out, whose package each child would import anew."""
    monkeypatch.setattr("cuecraft.study.compare.comparison.render_report", lambda document: "<!doctype html>")


@pytest.fixture(scope="module")
def unbroken(causal_folder, tmp_path_factory):
    """Return, given a name, its recipe, the record of a run that nothing broke, and how many steps that took."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            asked = recipe(name, folder / "asked", causal_folder)
            made[name] = (asked, *finished(asked, folder / "whole"))
        return made[name]

    return run


def kill_three_times(asked, out, steps, least=0.0):
    """Kill a run at three random moments; return after how many steps each time.

    Each time that is between a share `least` of half of the steps left, and half of them.
    """
    chance = random.Random(asked.name)
    reached = []
    for number in range(3):
        pid, pipe = running(asked, out, resume=number > 0, pause=PAUSE)
        most = max(1, (steps - sum(reached)) // 2)  # of what is left, so that something is left to be killed in
        reached.append(steps_of(pid, pipe, chance.randint(max(1, int(least * most)), most)))
        time.sleep(chance.random() * PAUSE)
        assert killed(pid, pipe) == -signal.SIGKILL
    return reached


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in JOBS]
)
def test_killed_three_times_it_ends_with_the_bits_of_an_unbroken_run(name, unbroken, tmp_path):
    asked, whole, steps = unbroken(name)
    assert whole.artifacts
    reached = kill_three_times(asked, tmp_path / "broken", steps)
    broken, left = finished(asked, tmp_path / "broken", resume=True)
    assert broken.artifacts == whole.artifacts
    assert broken.metrics == whole.metrics
    assert broken.sessions == 4
    events = [json.loads(line) for line in (tmp_path / "broken" / "events.jsonl").read_text().splitlines()]
    assert {event["session"] for event in events} == {1, 2, 3, 4}
    if name not in STATELESS and max(reached) > 4:  # past the untuned prompt, the start and a step or two
        assert left < steps  # it went on, and did not begin again


def dies(name):
    """Return a function that lets this process die in the middle of a write."""

    def patch():
        if name == "before the record":
            RunFolder.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        elif name == "while the state is put in place":
            Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
        elif name == "while the artifact is written":
            cuecraft.artifact.artifact.model_card = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        elif name == "before the last record":
            plain = RunFolder.write

            def last(self, record):
                if record.status == "finished":
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(self, record)

            RunFolder.write = last

    return patch


@pytest.mark.parametrize(
    "name",
    [
        "before the record",
        "while the state is put in place",
        "while the artifact is written",
        "before the last record",
    ],
)
def test_killed_in_the_middle_of_a_write_nothing_is_lost(name, unbroken, tmp_path):
    asked, whole, _ = unbroken("deep-cue")
    if name == "while the state is put in place":  # of one that has a state already
        pid, pipe = running(asked, tmp_path / "broken", pause=PAUSE)
        steps_of(pid, pipe, 5)
        assert killed(pid, pipe) == -signal.SIGKILL
        before = (tmp_path / "broken" / "state" / "01-deep-cue.safetensors").read_bytes()
    is_begun = RunFolder(tmp_path / "broken").is_there
    pid, pipe = running(asked, tmp_path / "broken", resume=is_begun, before=dies(name))
    steps_of(pid, pipe)
    assert ended(pid, pipe) == -signal.SIGKILL
    if name == "while the state is put in place":
        assert (tmp_path / "broken" / "state" / "01-deep-cue.safetensors").read_bytes() == before
    broken, _ = finished(asked, tmp_path / "broken", resume=True)
    assert broken.artifacts == whole.artifacts
    left = [path.name for path in (tmp_path / "broken").rglob("*") if path.name.endswith(".tmp")]
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoprompt", "straight-through", "p-tuning", "deep-cue", "lora", "full", "soup"])
def test_a_longer_run_goes_on_and_does_not_begin_again(name, causal_folder, tmp_path):
    options = {"autoprompt": {"steps": 40, "prompt_length": 12}, "straight-through": {"steps": 80}}
    tune = {"method": name, **options.get(name, {"epochs": 40, "patience": 40, "batch_size": 2})}
    if name == "soup":
        tune = {"method": name, "members": 3, "deep": {"epochs": 20, "patience": 20, "batch_size": 2}}
    asked = recipe(name, tmp_path / "asked", causal_folder, tune=tune)
    pid, pipe = running(asked, tmp_path / "whole")
    steps = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    reached = kill_three_times(asked, tmp_path / "broken", steps, 0.5)
    pid, pipe = running(asked, tmp_path / "broken", resume=True)
    left = steps_of(pid, pipe)
    assert ended(pid, pipe) == FINISHED
    # A session tells the untuned prompt and its start again, and the step that was cut short.
    assert sum(reached) > 20
    assert left <= steps - sum(reached) + 3 * 3
    first, second = (RunFolder(tmp_path / part).record() for part in ("whole", "broken"))
    assert first.artifacts == second.artifacts
    assert second.sessions == 4


def epoch_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["document"])["epoch"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_its_state_and_goes_on(number, causal_folder, tmp_path):
    # States every hour: what there is when it stops was kept because it was asked to.
    tune = {"method": "deep-cue", "epochs": 400, "patience": 400}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune, checkpoint={"seconds": 3600})
    pid, pipe = running(asked, tmp_path / "run")
    steps_of(pid, pipe, 20)
    os.kill(pid, number)
    taken = 20 + steps_of(pid, pipe)
    assert ended(pid, pipe) == STOPPED
    folder = RunFolder(tmp_path / "run")
    assert folder.record().status == "stopped"
    assert 15 <= epoch_of(folder.path / "state" / "01-deep-cue.safetensors") <= taken
    with pytest.raises(RunError, match=r"was not finished; go on with resume="):
        run_recipe(asked, folder.path)


@pytest.mark.parametrize(
    "name", ["label-free", "auto", "compare", pytest.param("hybrid", marks=pytest.mark.slow), "zero-shot"]
)
def test_every_kind_of_work_heeds_a_request_to_stop(name, unbroken, tmp_path):
    asked, whole, _ = unbroken(name)
    pid, pipe = running(asked, tmp_path / "run", pause=0.2)
    steps_of(pid, pipe, 1)
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    steps_of(pid, pipe)
    assert ended(pid, pipe) == STOPPED
    assert time.monotonic() - begun < 20  # not to the end, at a fifth of a second for each step
    assert RunFolder(tmp_path / "run").record().status == "stopped"
    assert finished(asked, tmp_path / "run", resume=True)[0].artifacts == whole.artifacts


def test_a_stop_in_the_middle_of_an_epoch_goes_on_there(causal_folder, tmp_path):
    tune = {"method": "deep-cue", "epochs": 4, "batch_size": 2}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune)
    whole = run_recipe(asked, tmp_path / "whole")
    from cuecraft.core.checkpoints import Slot

    kept = []
    save = Slot.save

    def counted(self, document, tensors):
        save(self, document, tensors)
        kept.append((document["epoch"], document["taken"]))
        if document["taken"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "save", counted)
        with pytest.raises(StoppedError):
            run_recipe(asked, tmp_path / "broken")
    assert kept == [(1, 1), (1, 2)]  # of three batches
    resumed = run_recipe(asked, tmp_path / "broken", resume=True)
    assert resumed.record.artifacts == whole.record.artifacts
    assert resumed.record.sessions == 2


def test_two_processes_on_one_run_are_one_too_many(causal_folder, tmp_path):
    tune = {"method": "deep-cue", "epochs": 5000, "patience": 5000}
    asked = recipe("deep-cue", tmp_path / "asked", causal_folder, tune=tune)
    pid, pipe = running(asked, tmp_path / "run")
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


def test_a_full_disk_leaves_the_last_state_usable(unbroken, tmp_path, monkeypatch):
    asked, whole, _ = unbroken("deep-cue")
    synced = []

    def fills_up(path):
        synced.append(path)
        if "01-deep-cue" in path.name and sum("01-deep-cue" in other.name for other in synced) > 4:
            full()

    with monkeypatch.context() as patch:
        patch.setattr(cuecraft.core.storage, "_sync", fills_up)
        with pytest.raises(MethodError, match=r"cannot write the training's state \(.*No space left.*free space"):
            run_recipe(asked, tmp_path / "run")
    record = RunFolder(tmp_path / "run").record()
    assert record.status == "failed"
    assert "No space left" in record.error
    resumed = run_recipe(asked, tmp_path / "run", resume=True)
    assert resumed.record.artifacts == whole.artifacts
    assert resumed.record.error is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_for_events_says_so(unbroken, tmp_path, monkeypatch):
    asked, whole, _ = unbroken("deep-cue")
    opened = EventFile.__init__

    def on_a_full_disk(self, path, session):
        opened(self, path, session)
        self._handle.write('{"half": ')
        self._handle.close()
        self._handle = Path("/dev/full").open("w")  # noqa: SIM115

    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "__init__", on_a_full_disk)
        with pytest.raises(RunError, match=r"events.jsonl: cannot be written \(No space left.*go on with resume="):
            run_recipe(asked, tmp_path / "run")
    assert run_recipe(asked, tmp_path / "run", resume=True).record.artifacts == whole.artifacts


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting needs root on Linux")
def test_a_small_disk_that_fills_up(unbroken, tmp_path):
    import shutil
    import subprocess

    asked, whole, _ = unbroken("full")
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
    assert resumed.record.artifacts == whole.artifacts
