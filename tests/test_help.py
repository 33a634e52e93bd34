"""Help: groups of commands and options, examples that can be run, completion."""

import os
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

from cuecraft.cli import app
from cuecraft.cli.help import COMMANDS, PANELS

ROOT = get_command(app)


def commands(group=ROOT, prefix=""):
    """Every command by its whole name, groups left out."""
    for name, command in group.commands.items():
        whole = f"{prefix} {name}".strip()
        yield from commands(command, whole) if hasattr(command, "commands") else [(whole, command)]


ALL = dict(commands())
GROUPS = {name for name in COMMANDS if " " not in name and name not in ALL}


def test_the_table_has_every_command_and_no_other():
    assert set(COMMANDS) == set(ALL) | GROUPS
    assert set(ROOT.commands) == {name for name in COMMANDS if " " not in name}


def test_the_names_that_scripts_use_are_kept():
    assert set(ALL) >= {
        *("demo", "advise", "tune", "words", "multitask", "mix", "predict", "classify", "serve", "show"),
        *("export", "import", "compare", "run", "verify", "recipe ls", "recipe show", "recipe cp"),
        *("recipe check", "recipe schema", "runs ls", "runs diff", "guard check", "guard eval", "guard data"),
    }


def test_help_shows_commands_in_groups(run):
    shown = run("--help")[1]
    order = [shown.index(entry) for entry in dict.fromkeys(entry.panel for entry in COMMANDS.values())]
    assert order == sorted(order)
    assert shown.index(" demo ") < shown.index(" tune ") < shown.index(" predict ")
    assert "--install-completion" in shown


def test_options_stand_in_groups(run):
    shown = run("tune", "--help")[1]
    places = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert places[0] < shown.index("--text-column") < places[1] < shown.index("--device") < places[2]


def test_defaults_in_brackets_are_no_markup(run):
    assert "[default: runs/METHOD-SEED]" in run("tune", "--help")[1]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - GROUPS))
def test_help_ends_with_examples_that_the_command_takes(run, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(*name.split(), "--help")[1]
    assert COMMANDS[name].examples
    for line, what in COMMANDS[name].examples:
        assert f"{line}  {what}" in shown
        words = shlex.split(line.split(" | ")[-1].split(" > ")[0])
        assert words[0] == "cuecraft"
        assert words[1 : 1 + len(name.split())] == name.split()
        # Parsed as it would be when run: unknown options, missing arguments and bad values are errors.
        ALL[name].make_context(name, words[1 + len(name.split()) :])


def test_shells_can_complete():
    own = os.environ | {"_CUECRAFT_COMPLETE": "complete_bash", "COMP_WORDS": "cuecraft pre", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'cuecraft'; from cuecraft.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["predict"]
