"""What a command imports: help nothing that computes, what answers nothing that trains."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.cli import app
from cuecraft.methods import METHODS
from cuecraft.runs.made import artifact_of

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
#: What reads, computes or trains. `transformers` imports parts of SciPy with any model, so SciPy is not named here.
HEAVY = {"torch", "transformers", "numpy", "yaml", "sklearn", "scipy", "pandas", "pyarrow", "tokenizers"}
TRAINS = (
    "cuecraft.methods",
    "cuecraft.methods.search",
    "cuecraft.api.estimators",
    "cuecraft.methods.gradients",
    "cuecraft.api.family",
)
LEARNERS = ("sklearn", "pandas", "pyarrow", "scipy.stats", "transformers.trainer", "peft", "datasets", "matplotlib")
COMMAND = """
import json, sys
{before}
known = set(sys.modules)
{meanwhile}
from cuecraft.cli import main
try:
    main()
except SystemExit as stopped:
    code = stopped.code or 0
sys.stderr.write("\\n" + json.dumps([code, sorted(set(sys.modules) - known)]))
"""
#: As a user of transformers loads a model; what a command imports beyond that is its own.
LOADED = """
import torch, transformers
transformers.AutoModelForCausalLM.from_pretrained({folder!r})
transformers.AutoTokenizer.from_pretrained({folder!r})
"""


def imported(*words, before="", meanwhile="", cwd=None):
    """Run a command in a fresh process; return its output and the modules that it imported."""
    code = COMMAND.format(before=before, meanwhile=meanwhile)
    command = [sys.executable, "-c", code, *map(str, words)]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=cwd, timeout=300, check=True)
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    assert exit_code == 0, done.stderr
    return done.stdout, set(modules)


def within(modules, packages):
    """Return the modules that are, or belong to, one of some packages."""
    return sorted(name for name in modules if any(name == own or name.startswith(own + ".") for own in packages))


@pytest.fixture(scope="module")
def made(causal_folder, tmp_path_factory):
    """An artifact of the tiny causal model."""
    folder = tmp_path_factory.mktemp("made") / "plain"
    PromptClassifier(str(causal_folder), "zero-shot").fit(X, Y).save(folder)
    return folder


def test_help_imports_nothing_that_computes():
    shown, modules = imported("--help")
    assert "predict" in shown
    assert not within(modules, HEAVY)
    assert not within(modules, TRAINS)


def test_help_of_each_command_imports_nothing_that_computes():
    commands = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(commands) > 10
    meanwhile = f"""
import contextlib
from cuecraft.cli import app
for name in {commands[:-1]!r}:
    with contextlib.suppress(SystemExit):
        app([name, "--help"])
"""
    shown, modules = imported(commands[-1], "--help", meanwhile=meanwhile)
    assert shown.count("Usage:") == len(commands)
    assert not within(modules, HEAVY)


def test_predict_imports_nothing_that_trains(made, causal_folder):
    shown, modules = imported("predict", made, "a joy", before=LOADED.format(folder=str(causal_folder)))
    assert "a joy" in shown
    assert "cuecraft.artifact.predictor" in modules
    assert not within(modules, TRAINS)
    assert not within(modules, (*LEARNERS, "scipy"))


def test_classify_imports_nothing_that_trains(made, causal_folder, tmp_path):
    pytest.importorskip("orjson")
    (tmp_path / "in.txt").write_text("a joy\na bore\n")
    before = LOADED.format(folder=str(causal_folder))
    _, modules = imported("classify", made, "in.txt", "--out", "out", before=before, cwd=tmp_path)
    assert "cuecraft.serving.bulk.pipeline" in modules
    assert not within(modules, TRAINS)
    assert not within(modules, (*LEARNERS, "scipy"))


def test_serve_imports_nothing_that_trains(made, causal_folder):
    pytest.importorskip("fastapi")
    # Once it answers, it is asked for one label, and then stopped as by Ctrl-C.
    meanwhile = """
import os, signal, threading, urllib.request
from cuecraft.cli import display

def ask(address):
    try:
        answer = urllib.request.urlopen(address + "/v1/classify", b'{"inputs": "a joy"}').read()
        sys.stdout.write(answer.decode())
    finally:
        os.kill(os.getpid(), signal.SIGINT)

display.serving = lambda address: threading.Thread(target=ask, args=[address]).start()
"""
    before = LOADED.format(folder=str(causal_folder))
    shown, modules = imported("serve", made, "--port", 0, before=before, meanwhile=meanwhile)
    assert "probabilities" in shown
    assert not within(modules, TRAINS)
    assert not within(modules, (*LEARNERS, "scipy"))


def test_guard_and_show_load_no_model(made):
    shown, modules = imported("guard", "check", "a joy")
    assert shown
    assert not within(modules, {"torch", "transformers", "sklearn", "scipy", "pandas"})
    _, modules = imported("show", made)
    assert not within(modules, TRAINS)
    assert not within(modules, LEARNERS)


def test_the_registry_imports_a_method_when_it_is_asked_for():
    code = """
import sys
from cuecraft.methods import METHODS
assert "lora" in METHODS and len(list(METHODS)) > 15
meet = {"registry", "problem", "evidence", "candidate", "objectives"}  # what all methods meet, and no method
assert not [name for name in sys.modules if name.startswith("cuecraft.methods.") and name.split(".")[2] not in meet]
assert METHODS["lora"].name == "lora" and "cuecraft.methods.auto" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_wrong_in_a_module_that_is_imported_late_is_said(tmp_path, monkeypatch):
    """Python takes an AttributeError of a package's `__getattr__` for a name that is not there."""
    package = tmp_path / "late"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from cuecraft.core.lazy import loaded_on_use\n"
        "__getattr__ = loaded_on_use(__name__, {'Own': 'own', 'Other': 'own'})\n"
    )
    (package / "own.py").write_text("import sys\nsys.no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"late\.own cannot be imported: .*no_such_thing"):
        from late import Own  # noqa: F401
    (package / "own.py").write_text("Own = 1  # and nothing else\n")
    importlib.invalidate_caches()
    import late

    assert late.Own == 1
    assert not hasattr(late, "Other")
    assert not hasattr(late, "Third")
    for name in ("late", "late.own"):
        del sys.modules[name]


def test_each_method_has_the_name_that_it_is_found_by():
    assert {name: kind.name for name, kind in METHODS.items()} == {name: name for name in METHODS}


def test_a_run_has_an_artifact_of_its_own(tmp_path):
    (tmp_path / "artifact").mkdir()
    assert artifact_of(tmp_path) == tmp_path
    (tmp_path / "run.json").write_text("{}")
    assert artifact_of(tmp_path) == tmp_path / "artifact"
