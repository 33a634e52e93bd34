"""Errors and warnings that name options: each front end shows them in its own words."""

import ast
import pickle
import re
from pathlib import Path
from typing import get_args

import pytest

from cuecraft import PromptClassifier
from cuecraft.cli.options import flag_of
from cuecraft.core.errors import CuecraftWarning, DataError, MethodError, named, python_word
from cuecraft.methods.registry import METHODS, make_method
from cuecraft.runs import load_recipe
from cuecraft.runs.jobs import job_of
from recipes import recipe, write_recipe

SOURCE = Path(__file__).parents[1] / "src" / "cuecraft"
#: What is called by the command line alone, shows commands that can be pasted, or answers those who started no server.
SHOWS_COMMANDS = ("cli/", "core/", "serving/http/", "study/advise/rules.py", "study/compare/demo_packages.py")


def test_an_option_is_shown_in_the_words_of_the_one_who_asks():
    error = DataError(f"{named('data.test_size')} needs {named('data.test')}; give it, not {{text}}")
    assert error.field == "data.test_size"
    assert str(error) == "test_size= needs test=; give it, not {text}"
    assert error.worded(flag_of) == "--test-size needs --test; give it, not {text}"
    assert error.worded(lambda place: place) == "data.test_size needs data.test; give it, not {text}"
    assert pickle.loads(pickle.dumps(error)).worded(flag_of) == error.worded(flag_of)
    quoting = DataError(f"a\x1eb \x1e {named('data.test')} \x1e")
    assert (quoting.field, quoting.worded(flag_of)) == ("data.test", "a\x1eb \x1e --test \x1e")
    plain = MethodError("unknown method")
    assert (plain.field, str(plain), plain.worded(flag_of)) == (None, "unknown method", "unknown method")


@pytest.mark.parametrize(
    ("place", "flag", "argument"),
    [
        ("data.train", "TRAIN", "train="),
        ("task.label_words", "--label-words", "label_words="),
        ("seeds", "--seeds", "seeds="),
    ],
)
def test_words_of_a_place(place, flag, argument):
    assert (flag_of(place), python_word(place)) == (flag, argument)


def test_a_recipe_names_its_keys(tmp_path, causal_folder):
    asked = recipe("deep-cue", tmp_path, causal_folder)
    data = asked.data.model_copy(update={"test": None, "test_size": 3, "shots": None})
    with pytest.raises(DataError, match=r"^data.test_size needs data.test, or data.shots or data.first"):
        job_of(asked.model_copy(update={"data": data}), tmp_path).data()


def test_the_command_line_names_its_flags(tmp_path, causal_folder, command):
    path = write_recipe("deep-cue", tmp_path, causal_folder)
    train = load_recipe(path).data.train
    code, _, err = command("tune", train, "--classes", "a,b", "--model", causal_folder)
    assert (code, err.count("--classes and --prior go with --unlabeled")) == (2, 1)


def test_python_names_its_arguments(causal_folder):
    with pytest.warns(CuecraftWarning, match=r"give it words \(label_words=\)"):
        PromptClassifier(causal_folder, "zero-shot", local_files_only=True).fit(["a", "b"] * 4, [0, 1] * 4)


def test_no_other_text_of_the_library_names_a_flag():
    """Outside what only a command calls, a text that names a flag would tell a Python user to type it."""
    found = []
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        if place.startswith(SHOWS_COMMANDS):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and "warn" in ast.unparse(node.func))):
                continue
            for text in ast.walk(node):
                if isinstance(text, ast.Constant) and isinstance(text.value, str) and re.search(r"--[a-z]", text.value):
                    found.append(f"{place}: {text.value}")
    assert found == []


FLOATS = [
    (name, option)
    for name in METHODS
    for option, field in METHODS[name].model_fields.items()
    if float in (field.annotation, *get_args(field.annotation))
]


@pytest.mark.parametrize(("method", "option"), FLOATS)
@pytest.mark.parametrize("value", ["1e300", "inf", "-inf", "nan", 1e300, float("nan")])
def test_numbers_that_single_precision_does_not_hold_are_refused(method, option, value):
    with pytest.raises(MethodError, match=rf"option '{option}(\.0)?': (input should be|value error)") as caught:
        make_method(method, {option: value})
    assert "\n" not in str(caught.value)
