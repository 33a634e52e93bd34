"""The structure of the source: imports point down, modules stay small, importing the package is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cuecraft

SOURCE = Path(cuecraft.__file__).parent
sys.path.insert(0, str(SOURCE.parents[1] / "scripts"))

import structure  # noqa: E402

KNOWN = structure.modules()


def test_imports_point_down():
    assert structure.broken_levels(KNOWN) == []


def test_heads_of_modules_import_in_no_circle():
    assert structure.cycles(KNOWN) == []


def test_modules_and_functions_stay_small():
    assert structure.too_long(KNOWN) == []


def test_a_class_has_its_name_alone():
    assert structure.ambiguous(KNOWN) == []


def test_what_serves_and_guards_never_imports_what_trains_or_compares():
    for module in KNOWN.values():
        if module.package == "serving":
            assert not {"methods", "study"} & {name.split(".")[0] for name in structure.imports(module, KNOWN)}, (
                module.name
            )


def test_the_rules_find_what_breaks_them():
    """Modules made up here: one that imports what is above it, two that import each other, one that is too long."""

    def module(name, text):
        return structure.Module(SOURCE, name, ast.parse(text), text.count("\n"))

    above = {
        "task.a": module("task.a", "def f():\n    from cuecraft.methods import b"),
        "methods.b": module("methods.b", ""),
    }
    assert structure.broken_levels(above) == ["task.a imports methods.b, which is not below it"]
    same = {"study.a": module("study.a", "import cuecraft.serving.b"), "serving.b": module("serving.b", "")}
    assert structure.broken_levels(same) == ["study.a imports serving.b, which is not below it"]
    circle = {
        "task.a": module("task.a", "import cuecraft.task.b"),
        "task.b": module("task.b", "import cuecraft.task.a"),
    }
    assert structure.cycles(circle) == [["task.a", "task.b"]]
    assert structure.broken_levels({"other.a": module("other.a", "")}) == ["other.a is in no known package"]
    twice = {name: module(name, "class A:\n    pass") for name in ("task.a", "serving.b")}
    assert structure.ambiguous(twice) == ["A: task.a, serving.b"]
    long = {"task.a": module("task.a", "def f():\n" + "    x = 1\n" * 501)}
    assert structure.too_long(long) == ["task.a has 502 lines", "task.a: f has 502 lines"]


@pytest.mark.parametrize("name", ["data", "task", "export.runtime", "core.errors"])
def test_what_is_light_never_imports_torch(name):
    for module in KNOWN.values():
        if f"{module.name}.".startswith(f"{name}."):
            names = [a.name for n in ast.walk(module.tree) if isinstance(n, ast.Import) for a in n.names]
            names += [n.module or "" for n in ast.walk(module.tree) if isinstance(n, ast.ImportFrom)]
            assert not [name for name in names if name.split(".")[0] in ("torch", "transformers")], module.name


def test_importing_the_package_or_the_command_line_does_not_load_torch():
    code = "import sys, cuecraft, cuecraft.cli; sys.exit(bool({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(given, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    code = "import os, cuecraft; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == found


def test_a_process_that_reads_does_not_load_torch():
    code = "import sys, cuecraft.serving.bulk.reading; sys.exit(bool({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    assert sorted(cuecraft.__all__) == [
        "AutoPrompt",
        "CuecraftError",
        "CuecraftWarning",
        "ExportedClassifier",
        "Guard",
        "PrefixTuning",
        "PromptClassifier",
        "PromptEnsemble",
        "PromptFamily",
        "PromptRegressor",
        "Task",
        "Template",
        "Verbalizer",
        "load_artifact",
        "load_backbone",
    ]
    for name in cuecraft.__all__:
        assert getattr(cuecraft, name) is not None
    assert set(cuecraft.__all__) <= set(dir(cuecraft))


def test_nothing_unsafe_is_called():
    for module in KNOWN.values():
        path, tree = module.path, module.tree
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [c for c in calls if c in ("eval", "exec", "torch.load") or "pickle" in c or "joblib" in c], path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", path
