"""Commands that compare methods: demo, compare."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft import display
from cuecraft.cli.app import app
from cuecraft.cli.arguments import unescaped, words_of
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the winner's artifact goes.")] = Path("runs/demo"),
    shots: Annotated[int, typer.Option(min=1, help="Reviews of each class to train on, and as many for dev.")] = 16,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out reviews.")] = 400,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Teach a small frozen model to judge film reviews, in six ways, and keep the best prompt."""
    from cuecraft.compare.demo import DATA, MODEL, run_demo
    from cuecraft.prompts import check_target

    check_target(out)
    begun = time.perf_counter()
    with display.progress() as started:
        result = run_demo(shots, test_size, seed, started)
    result.artifact.save(out)
    document = display.demo_document(result, str(out), time.perf_counter() - begun)
    title = f"{DATA}, {MODEL}: {shots} a class to train, {shots} to choose, {result.test_size} to test"
    display.print_json(document) if json else display.print_demo(document, title)


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

    Finished parts are kept: the same command goes on where it was stopped.
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
