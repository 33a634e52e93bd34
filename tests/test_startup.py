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
#: Runs commands one after the other in one process; to each belong the modules that it and those before it imported.
#: What `load` imports is left out: it loads a model as a user of transformers does.
ANSWERS = """
import contextlib, io, json, os, signal, sys, threading, urllib.request

from cuecraft.cli import display, main

def ask(address):
    try:
        answer = urllib.request.urlopen(address + "/v1/classify", b'{{"inputs": "a joy"}}').read()
        sys.stdout.write(answer.decode())
    finally:
        os.kill(os.getpid(), signal.SIGINT)

display.serving = lambda address: threading.Thread(target=ask, args=[address]).start()
known, found = set(sys.modules), {{}}
for words in {commands!r}:
    out, code = io.StringIO(), None
    if words[0] == "load":
        before = set(sys.modules)
        import torch, transformers
        transformers.AutoModelForCausalLM.from_pretrained(words[1])
        transformers.AutoTokenizer.from_pretrained(words[1])
        known |= set(sys.modules) - before
        continue
    sys.argv = ["cuecraft", *words]
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    found[words[0]] = [code, out.getvalue(), sorted(set(sys.modules) - known)]

from cuecraft.methods import METHODS

def loaded():
    return [name for name in sys.modules if name.startswith("cuecraft.methods.")]

found["registry"] = [list(METHODS), loaded(), METHODS["lora"].name, loaded()]
print(json.dumps(found))
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
    """An artifact of the tiny causal model, and its classifier."""
    folder = tmp_path_factory.mktemp("made") / "tuned"
    classifier = PromptClassifier(str(causal_folder), "prompt-tuning", method_options={"epochs": 2}).fit(X, Y)
    classifier.save(folder)
    return folder, classifier


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


def test_guard_loads_no_model():
    shown, modules = imported("guard", "check", "a joy")
    assert shown
    assert not within(modules, {"torch", "transformers", "sklearn", "scipy", "pandas"})


@pytest.fixture(scope="module")
def answering(made, causal_folder, tmp_path_factory):
    """Run what answers in a fresh process; return, by command, what it printed and the modules that it imported.

    Then the registry of methods is read: its methods, the modules of methods there are, and those after one was read.
    `serve` is asked for one label once it answers, and then stopped as by Ctrl-C.
    """
    pytest.importorskip("orjson")
    pytest.importorskip("fastapi")
    folder = tmp_path_factory.mktemp("answering")
    (folder / "in.txt").write_text("a joy\na bore\n")
    tuned = str(made[0])
    commands = [
        ["load", str(causal_folder)],
        ["show", tuned],
        ["predict", tuned, *X, "--json"],
        ["classify", tuned, "in.txt", "--out", "out"],
        ["serve", tuned, "--port", "0"],
    ]
    command = [sys.executable, "-c", ANSWERS.format(commands=commands)]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=folder, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "says", "imports"),
    [
        ("show", "prompt-tuning", "cuecraft.artifact.artifact"),
        ("predict", "a joy from start to finish", "cuecraft.artifact.predictor"),
        ("classify", "2 classified", "cuecraft.serving.bulk.pipeline"),
        ("serve", "probabilities", "cuecraft.serving.http.app"),
    ],
)
def test_what_answers_imports_nothing_that_trains(name, says, imports, answering):
    code, shown, modules = answering[name]
    assert code == 0
    assert says in shown
    assert imports in modules
    assert not within(modules, TRAINS)
    assert not within(modules, (*LEARNERS, "scipy"))


def test_another_process_gives_the_same_probabilities_bit_for_bit(made, answering):
    _, classifier = made
    rows = json.loads(answering["predict"][1])["predictions"]
    found = [[row["probabilities"][label] for label in classifier.classes_] for row in rows]
    assert found == classifier.predict_proba(X).tolist()


def test_the_registry_imports_a_method_when_it_is_asked_for(answering):
    listed, early, name, late = answering["registry"]
    assert "lora" in listed
    assert len(listed) > 15
    meet = {"registry", "problem", "evidence", "candidate", "objectives"}  # what all methods meet, and no method
    assert {own.split(".")[2] for own in early} <= meet
    assert name == "lora"
    assert "cuecraft.methods.train.weights" in late
    assert "cuecraft.methods.auto" not in late


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
