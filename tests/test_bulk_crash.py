"""Jobs that are killed and go on: the output is that of an unbroken run, row for row and bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from bulk import artifact, classify, messages, rows_of, write_jsonl
from children import FINISHED, Command, ended, forked, killed, steps_of

KINDS = {
    "off": {"dedupe": "off"},
    "exact": {"cache_answers": 60},
    "cascade": {"dedupe": "template", "cascade": True, "agreement": 0.55, "sample": 150},
}
FLAGS = [
    "--dedupe",
    "template",
    "--cascade",
    "--agreement",
    "0.55",
    "--option",
    "sample=150",
    "--option",
    "block_mb=0.006",
]


@pytest.fixture(scope="module")
def prompt(causal_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "plain"
    artifact(causal_folder, folder, calibration="fitted")
    return folder


def running(prompt, source, out, options, pause=0.0):
    """Run a job in a child of this process; return its pid and a pipe that gets a byte for each step."""
    return forked(
        lambda report: classify(prompt, source, out, report, resume=True, block_mb=0.006, window=16, **options), pause
    )


def files_of(out):
    return {path.name: path.read_bytes() for path in (*out.glob("part-*"), *out.glob("quarantine/*"))}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_five_times_it_ends_with_the_rows_of_an_unbroken_run(prompt, tmp_path, kind):
    source = write_jsonl(tmp_path / "a.jsonl", messages(900, distinct=500), broken=50)
    child = running(prompt, source, tmp_path / "whole", KINDS[kind])
    left = steps_of(*child)
    assert ended(*child) == FINISHED
    chance = random.Random(kind)
    for _ in range(5):
        most = chance.randint(1, max(1, left // 2))
        child = running(prompt, source, tmp_path / "broken", KINDS[kind], pause=0.01)
        time.sleep(chance.random() * 0.02)
        taken = steps_of(*child, most)
        assert (killed(*child), taken) == (-signal.SIGKILL, most)
        left -= taken
    child = running(prompt, source, tmp_path / "broken", KINDS[kind])
    steps_of(*child)
    assert ended(*child) == FINISHED
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    rows = rows_of(tmp_path / "broken")
    assert len({row["id"] for row in rows}) == len(rows) == 882
    assert len(rows_of(tmp_path / "broken", "quarantine")) == 18


def arguments(prompt, source, out, *flags):
    job = ["--field", "message", "--out", str(out), "--resume", "--option", "window=16"]
    return ["classify", str(prompt), str(source), *job, *flags]


def started(*job):
    command = [sys.executable, "-m", "cuecraft", *arguments(*job)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(*job):
    process = started(*job)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


def steps(out):
    """Return how far a job has come: windows and manifests that were written."""
    return len(list(out.glob("shards/*"))) + len(list(out.glob("state/*.window")))


@pytest.mark.slow
def test_a_process_with_readers_is_killed_and_leaves_none_of_them(prompt, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", messages(900, distinct=500), broken=50)
    flags = [*FLAGS, "--option", "readers=2"]
    finished(prompt, source, tmp_path / "whole", *flags)
    for most in (4, 11):
        process = started(prompt, source, tmp_path / "broken", *flags)
        while process.poll() is None and steps(tmp_path / "broken") < most:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while _orphans() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _orphans()
    printed = finished(prompt, source, tmp_path / "broken", *flags)
    assert "900 read = 882 classified + 18 quarantined" in printed
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def _orphans():
    """Return readers that were started since these tests began, whose parent is gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            cwd, command = os.readlink(path / "cwd"), (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == 1 and b"spawn_main" in command and cwd == os.getcwd() and path.stat().st_mtime > _BEGUN:
            found.append(path.name)
    return found


_BEGUN = time.time()


def test_a_signal_stops_it_and_it_goes_on(prompt, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", messages(900))
    flags = ["--option", "readers=0", "--option", "block_mb=0.006"]
    process = Command(*arguments(prompt, source, tmp_path / "out", *flags))
    while process.poll() is None and steps(tmp_path / "out") < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume goes on" in err
    assert "Traceback" not in err
    document = classify({"plain": prompt}, source, tmp_path / "out", resume=True, block_mb=0.006, window=16)
    assert document["classified"] == 900
    assert len({row["id"] for row in rows_of(tmp_path / "out")}) == 900


def _actors():
    """Return the processes of Ray's actors."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::") and b"Actor" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_on_ray_an_actor_and_then_the_driver_are_killed_and_no_row_is_lost(prompt, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", messages(900, distinct=500), broken=50)
    flags = [*FLAGS, "--backend", "ray", "--option", "actors.cpus=0.5"]
    finished(prompt, source, tmp_path / "whole", *flags)
    out = tmp_path / "broken"
    process = started(prompt, source, out, *flags)
    killed = 0
    while process.poll() is None and killed < 2:
        if steps(out) > 6 + 10 * killed and _actors():
            for pid in _actors():
                os.kill(pid, signal.SIGKILL)
            killed += 1
        time.sleep(0.05)
    _, err = process.communicate(timeout=900)
    assert killed, err
    if process.returncode:  # the driver may give up; what is finished is kept
        assert "goes on with --resume" in err.replace("go on", "goes on")
    printed = finished(prompt, source, out, *flags)
    assert "900 read = 882 classified + 18 quarantined" in printed
    assert files_of(out) == files_of(tmp_path / "whole")
