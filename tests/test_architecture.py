"""The house: imports point down, rooms stay small, the front door is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cuecraft

SOURCE = Path(cuecraft.__file__).parent
# From the top down; a module may import from rooms below its own, and from its own.
ROOMS = (
    "__main__ cli display recipe runs family classic classifier scored interop export advise compare bulk "
    "serve guard tune search gradients untuned method predictor runtime prompts backbone task data checkpoints assets "
    "gguf_files manifests remembered storage options settings evidence deadline determinism machine signals seeding "
    "lazy events errors"
).split()


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield path, parts[0], ast.parse(path.read_text(encoding="utf-8"))


def imported_rooms(tree):
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cuecraft":
            names = [node.module] if node.module != "cuecraft" else [f"cuecraft.{a.name}" for a in node.names]
            yield from (name.split(".")[1] for name in names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("cuecraft."))


def test_imports_point_down():
    for path, room, tree in modules():
        if room == "__init__":
            continue
        assert room in ROOMS, f"{path} is in no known room"
        for other in imported_rooms(tree):
            assert ROOMS.index(other) >= ROOMS.index(room), f"{path} imports {other}, which is above it"


def test_what_serves_and_guards_never_imports_what_searches_or_trains():
    for path, room, tree in modules():
        if room in ("bulk", "serve", "guard"):
            assert not {"search", "tune", "compare"} & set(imported_rooms(tree)), path


def test_the_light_rooms_never_import_torch():
    for path, room, tree in modules():
        if room in ("task", "data", "runtime", "errors"):
            names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
            names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            assert not [name for name in names if name.split(".")[0] in ("torch", "transformers")], path


def test_modules_and_functions_stay_small():
    for path, _, tree in modules():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 500, f"{path} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.lineno + 1
                assert size <= 60, f"{path}: {node.name} has {size} lines"


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
    code = "import sys, cuecraft.bulk.reading; sys.exit(bool({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    assert sorted(cuecraft.__all__) == [
        "AutoPrompt",
        "CuecraftError",
        "CuecraftWarning",
        "PrefixTuning",
        "PromptClassifier",
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
    for path, _, tree in modules():
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [c for c in calls if c in ("eval", "exec", "torch.load") or "pickle" in c or "joblib" in c], path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", path
