"""Options of commands that are made of the sections of a run."""

import re
from typing import Annotated

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cuecraft.cli import app
from cuecraft.cli.app import CommandApp
from cuecraft.cli.from_spec import Fields, made
from cuecraft.cli.options import flag_of
from cuecraft.core.errors import MethodError
from cuecraft.task.sections import DataSection, LimitSection, ModelSection, TaskSection, WritingSection

TUNE = get_command(app).commands["tune"]


def asked_for(*words):
    """Return the sections that a small command gets."""
    own, found = CommandApp(), {}

    @own.command()
    def try_it(
        data: Annotated[DataSection, Fields(("train", "shots", "text_columns"))],
        model: ModelSection,
        task: Annotated[TaskSection, Fields(without=("user", "assistant"), says={"max_tokens": "so many"})],
        limits: LimitSection,
        other: bool = False,
    ) -> None:
        """Try."""
        found.update(data=data, model=model, task=task, limits=limits, other=other)

    done = CliRunner().invoke(own, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return found, done.output


def test_a_command_gets_its_sections_and_defaults_are_theirs():
    found, _ = asked_for("a.csv", "--other")
    assert found["data"] == DataSection(train="a.csv")
    assert (found["model"], found["task"], found["limits"]) == (ModelSection(), TaskSection(), LimitSection())
    assert found["other"]
    assert not found["model"].model_fields_set  # what was not given is not said


def test_words_of_the_command_line_are_read():
    words = ["--text-column", "a", "--text-column", "b", "--label-words", "x=good,fine", "--label-words", "y=bad"]
    words += ["--classes", "x, y", "--seeds", "3,4", "--template", r"{a}{b}\n{prompt}{mask}", "--model", "tiny"]
    found, _ = asked_for("a.csv", *words, "--no-chat", "--max-tokens", "9", "--local-files-only")
    assert found["data"].text_columns == ["a", "b"]
    task = found["task"]
    assert (task.label_words, task.classes) == ({"x": ["good", "fine"], "y": ["bad"]}, ["x", "y"])
    assert (task.template, task.chat, task.max_tokens) == ("{a}{b}\n{prompt}{mask}", False, 9)
    assert found["limits"].seeds == [3, 4]
    assert (found["model"].name, found["model"].local_files_only) == ("tiny", True)
    assert asked_for("a.csv", "--label-words", "auto")[0]["task"].label_words == "auto"


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (ModelSection, {"head": "giant"}, r"--head: input should be 'causal', 'masked' or 'sequence' \(got 'giant'\)"),
        (ModelSection, {"name": ""}, "--model: string should have at least 1 character"),
        (LimitSection, {"seed": -1}, r"--seed: input should be greater than or equal to 0 \(got -1\)"),
        (LimitSection, {"seeds": "4"}, "--seeds: needs two seeds at least"),
        (LimitSection, {"seeds": "4,4"}, "--seeds: a seed is named twice"),
        (WritingSection, {"template": "{text}"}, "--template: template"),
        (WritingSection, {"chat": False, "system": "Be brief."}, "system"),
    ],
)
def test_a_value_that_cannot_be_names_its_option(kind, values, says):
    with pytest.raises(MethodError) as caught:
        made(kind, values)
    assert re.search(says, caught.value.worded(flag_of))


def test_label_words_cannot_be_searched_where_they_are_given():
    with pytest.raises(ValueError, match="is not CLASS=word"):
        made(WritingSection, {"label_words": ["auto"]})


def test_help_says_what_recipes_say():
    shown = {param.name: param.help for param in TUNE.params}
    for section in (DataSection, ModelSection, LimitSection):
        for name, field in section.model_fields.items():
            if name not in ("text_columns", "seeds"):
                own = shown["model" if name == "name" else name]
                assert own.casefold().startswith(field.description.casefold()), name
    assert "So many." in asked_for("--help")[1]


def test_the_names_of_options_stay():
    """Scripts use them; a new name of a field would be a new option."""
    names = {name for param in TUNE.params for name in (*param.opts, *param.secondary_opts)}
    assert names == {
        *("train", "--dev", "--test", "--test-size", "--text-column", "--label-column", "--delimiter"),
        *("--options-column", "--separator", "--answers", "--answer-option", "--reject"),
        *("--skip-bad-rows", "--model", "--method", "--preset", "--template", "--chat", "--no-chat", "--system"),
        *("--label-words", "--option", "--vocab-from", "--shots", "--first", "--head", "--max-tokens", "--seed"),
        *("--seeds", "--time-limit", "--device", "--dtype", "--local-files-only", "--checkpoints", "--out"),
        *("--unlabeled", "--classes", "--prior", "--json"),
    }
