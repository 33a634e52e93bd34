"""Commands of recipes and runs: run, verify, recipe, runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cuecraft import display
from cuecraft.cli.app import CommandApp, app
from cuecraft.cli.help import COMMANDS
from cuecraft.cli.options import Json
from cuecraft.errors import StoppedError

recipe_app = CommandApp("recipe", no_args_is_help=True, help="Recipes: list, show, copy, check, schema.")
runs_app = CommandApp("runs", no_args_is_help=True, help="Runs of recipes: list, compare.")
app.add_typer(recipe_app, name="recipe", rich_help_panel=COMMANDS["recipe"].panel)
app.add_typer(runs_app, name="runs", rich_help_panel=COMMANDS["runs"].panel)

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with cuecraft.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="KEY=VALUE in place of what the recipe says: tune.learning_rate=0.003")
]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/NAME, with a number where that is taken.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped; begin it where there is none.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a recipe in a folder of its own; Ctrl-C stops it, --resume continues it, to the same bits."""
    from cuecraft.determinism import restart_with_fixed_hashes

    restart_with_fixed_hashes(sys.argv[1:])
    from cuecraft.recipe import load_recipe, recipe_path, run_recipe

    loaded = load_recipe(recipe_path(recipe), overrides or [])
    try:
        with display.progress() as started:
            finished = run_recipe(loaded, out, resume=resume, started=started, stopping=display.stopping)
    except StoppedError as stopped:
        display.resumable()
        raise typer.Exit(128 + int(stopped.args[0])) from None
    if finished.is_earlier:
        display.already_finished()
    record = finished.record.model_dump(mode="json") | {"folder": str(finished.folder)}
    expect = loaded.expect.model_dump(mode="json") if loaded.expect else None
    display.print_json(record) if json else display.print_run(record, expect)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    exact: Annotated[
        bool, typer.Option("--exact", help="Ask for the same bits, not only metrics within tolerance.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the second run here.")] = None,
    json: Json = False,
) -> None:
    """Run a recipe again in a fresh process and compare; exit code 1 where it does not repeat itself."""
    from cuecraft.recipe import verify as verify_run

    try:
        with display.progress() as started:
            found = verify_run(folder, out, started)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # 1 would say that the run does not repeat itself
    display.print_json(found.document()) if json else display.print_run_comparison(found.document())
    if not (found.is_exact if exact else found.is_same):
        raise typer.Exit(1)


@recipe_app.command("ls")
def list_recipes(json: Json = False) -> None:
    """List the recipes that come with cuecraft."""
    from cuecraft.recipe import recipe_path, shipped_names
    from cuecraft.recipe.shipped import described

    rows = [{"name": name, "path": str(recipe_path(name)), **described(name)} for name in shipped_names()]
    display.print_json({"recipes": rows}) if json else display.print_recipes(rows)


@recipe_app.command("show")
def show_recipe(recipe: RecipeName) -> None:
    """Print a recipe's file."""
    from cuecraft.recipe.shipped import read_recipe

    sys.stdout.write(read_recipe(recipe))


@recipe_app.command("cp")
def copy_recipe(recipe: RecipeName, target: Annotated[Path, typer.Argument(help="File or folder.")] = Path()) -> None:
    """Copy a recipe, to make it your own."""
    from cuecraft.recipe import copy_recipe as copy

    display.page.print(str(copy(recipe, target)), markup=False, soft_wrap=True)


@recipe_app.command("check")
def check_recipe(
    recipe: RecipeName,
    overrides: Overrides = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Leave the data unread.")] = False,
    json: Json = False,
) -> None:
    """Return whether a recipe can be run: keys, values, template, method, model, data."""
    from cuecraft.recipe import check_recipe as check

    found = check(recipe, overrides or [], with_data=not no_data)
    display.print_json(found) if json else display.print_check(found)


@recipe_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cuecraft.recipe import json_schema

    display.print_json(json_schema())


@runs_app.command("ls")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"), json: Json = False
) -> None:
    """List runs."""
    from cuecraft.recipe import find_runs

    rows = [{"folder": str(run.path), **run.shown()} for run in find_runs(folder)]
    display.print_json({"runs": rows}) if json else display.print_runs(rows)


@runs_app.command("diff")
def diff_runs(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another.")],
    json: Json = False,
) -> None:
    """Show in what two runs differ: recipe, machine, data, steps, results, metrics."""
    from cuecraft.recipe import RunFolder, compare_runs, differences

    one, other = RunFolder(first), RunFolder(second)
    rows = [dict(zip(("key", "before", "now"), row, strict=True)) for row in differences(one, other)]
    if not json:
        display.print_differences(rows)
    found = compare_runs(one, other).document()
    display.print_json(found | {"differences": rows}) if json else display.print_run_comparison(found)
