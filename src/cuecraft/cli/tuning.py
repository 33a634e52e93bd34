"""Commands that find prompts and what belongs to that: tune, words, advise, multitask, mix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft.cli import display
from cuecraft.cli.app import app
from cuecraft.cli.options import (
    BackboneNow,
    ChatSwitch,
    CheckpointFolder,
    Classes,
    Delimiter,
    Dev,
    Device,
    Dtype,
    First,
    Head,
    Json,
    LabelColumn,
    LabelWords,
    MaxTokens,
    MethodName,
    MethodOption,
    Model,
    Offline,
    Out,
    PresetName,
    Prior,
    Seed,
    Seeds,
    Shots,
    SkipBadRows,
    SystemTurn,
    TemplateText,
    Test,
    TestSize,
    TextColumn,
    TimeLimit,
    Train,
    TuneWords,
    Unlabeled,
    VocabFrom,
    chat_of,
    names_of,
    numbers_of,
    pairs_of,
    reading_of,
    unescaped,
    words_of,
)
from cuecraft.core.errors import MethodError


@app.command()
def tune(
    train: Train,
    dev: Dev = None,
    test: Test = None,
    test_size: TestSize = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = "label",
    delimiter: Delimiter = None,
    skip_bad_rows: SkipBadRows = False,
    model: Model = "demo:smollm2-135m",
    method: MethodName = None,
    preset: PresetName = None,
    template: TemplateText = None,
    chat: ChatSwitch = None,
    system: SystemTurn = None,
    label_words: TuneWords = None,
    option: MethodOption = None,
    vocab_from: VocabFrom = None,
    shots: Shots = None,
    first: First = None,
    head: Head = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    time_limit: TimeLimit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    checkpoints: CheckpointFolder = None,
    out: Out = None,
    unlabeled: Unlabeled = False,
    classes: Classes = None,
    prior: Prior = None,
    json: Json = False,
) -> None:
    """Find a prompt for labelled texts, or with --unlabeled for texts alone, and write it as an artifact."""
    from cuecraft.core.checkpoints import Keeping
    from cuecraft.runs import TuneRequest, run_tune

    where: dict[str, Any] = {"device": device, "dtype": dtype, "local_files_only": local_files_only, "seed": seed}
    asked: dict[str, Any] = {"unlabeled": unlabeled, "classes": names_of(classes), "prior": tuple(prior or [])}
    asked |= {"shots": shots, "first": first, "max_tokens": max_tokens, "time_limit": time_limit, "head": head}
    asked |= {"train": train, "dev": dev, "test": test, "test_size": test_size}
    asked |= {"template": unescaped(template), "chat": chat_of(chat, system), "vocab_from": vocab_from}
    asked["method"], asked["out"] = _method_and_folder(method, unlabeled, out, seeds or str(seed))
    request = TuneRequest(
        text_columns=tuple(text_column or ["text"]),
        label_column=label_column,
        model=model,
        method_options=pairs_of(option or []) | ({"preset": preset} if preset else {}),
        label_words="auto" if label_words == ["auto"] else words_of(label_words or []),
        seeds=numbers_of(seeds),
        checkpoints=Keeping(checkpoints) if checkpoints else None,
        reading=reading_of(delimiter, skip_bad_rows),
        **where,
        **asked,
    )
    with display.progress() as started:
        document = run_tune(request, started)
    display.print_json(document) if json else display.print_tuned(document)


def _method_and_folder(method: str | None, unlabeled: bool, out: Path | None, seeds: str) -> tuple[str, Path]:
    """Return the method, and the folder to write, named after it where none is given."""
    if unlabeled and method is not None:
        raise MethodError("--method has no meaning with --unlabeled; leave one of them out")
    method = "auto" if method is None else method
    return method, out or Path("runs", f"{'label-free' if unlabeled else method}-{seeds}")


@app.command()
def words(
    train: Train,
    dev: Annotated[str | None, typer.Option(help="More examples to choose by.")] = None,
    way: Annotated[str, typer.Option(help="contrast (likelihoods after texts of each class) or probe.")] = "contrast",
    most: Annotated[int, typer.Option("--words", help="Words that a class may get, at most.")] = 8,
    candidates: Annotated[int, typer.Option(help="Words that compete: the likeliest at the answer slot.")] = 200,
    text_column: TextColumn = None,
    label_column: LabelColumn = "label",
    delimiter: Delimiter = None,
    model: Model = "demo:smollm2-135m",
    template: TemplateText = None,
    chat: ChatSwitch = None,
    system: SystemTurn = None,
    label_words: Annotated[
        list[str] | None, typer.Option(help="CLASS=word to begin with. [default: the classes' names]")
    ] = None,
    shots: Shots = None,
    head: Head = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Find label words: which words of the vocabulary stand for the classes best."""
    from cuecraft.runs import WordsRequest, run_words

    options = {"way": way, "words": most, "candidates": candidates}
    where: dict[str, Any] = {"device": device, "dtype": dtype, "local_files_only": local_files_only}
    columns = (tuple(text_column or ["text"]), label_column)
    begin, reading, wanted = words_of(label_words or []), reading_of(delimiter), unescaped(template)
    turns = chat_of(chat, system)
    request = WordsRequest(
        train, dev, *columns, model, options, wanted, begin, shots, head, seed, where, reading, turns
    )
    with display.progress() as started:
        document = run_words(request, started("label words"))
    display.print_json(document) if json else display.print_words(document)


@app.command()
def advise(
    data: Annotated[str, typer.Argument(help="As TRAIN of tune; rows may have no label, or there may be no column.")],
    model: Model = "demo:smollm2-135m",
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of class names, if any. [default: label]")] = None,
    delimiter: Delimiter = None,
    classes: Annotated[str | None, typer.Option(help="Classes with commas between; needed without labels.")] = None,
    template: TemplateText = None,
    chat: ChatSwitch = None,
    system: SystemTurn = None,
    label_words: LabelWords = None,
    head: Head = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds of measuring, about.")] = 60.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Send up to 100 labelled texts to this OpenAI-compatible address, to compare.")
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="Name of the model there.")] = None,
    endpoint_key_env: Annotated[
        str | None,
        typer.Option(help="Variable with its key. [default: OPENAI_API_KEY, for api.openai.com]"),
    ] = None,
    labelled_out: Annotated[Path | None, typer.Option(help="Write the rows that have a label here, as JSONL.")] = None,
    json: Json = False,
) -> None:
    """Measure the data for about a minute: methods that fit, their time and memory, and whether tuning is worth it."""
    from cuecraft.study.advise import AdviseRequest, run_advise

    request = AdviseRequest(
        data=data,
        model=model,
        text_columns=tuple(text_column or ["text"]),
        label_column=label_column,
        classes=names_of(classes),
        template=unescaped(template),
        chat=chat_of(chat, system),
        label_words=words_of(label_words or []),
        head=head,
        max_tokens=max_tokens,
        seed=seed,
        time_limit=time_limit,
        device=device,
        dtype=dtype,
        local_files_only=local_files_only,
        endpoint=endpoint,
        endpoint_model=endpoint_model,
        endpoint_key_env=endpoint_key_env,
        labelled_out=labelled_out,
        reading=reading_of(delimiter),
    )
    with display.progress() as started:
        document = run_advise(request, started)
    display.print_json(document) if json else display.print_advice(document)


@app.command()
def multitask(
    task: Annotated[list[str], typer.Option(help="NAME=FILE of training texts; repeat it, once for each task.")],
    dev: Annotated[list[str] | None, typer.Option(help="NAME=FILE to choose and stop by.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="NAME=FILE of held-out texts, for reporting only.")] = None,
    test_size: Annotated[int | None, typer.Option(min=1, help="Test rows to draw from each --test.")] = None,
    add_to: Annotated[Path | None, typer.Option(help="Add the tasks to this family; what it shares stays.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = "label",
    model: Annotated[
        str | None, typer.Option(help="As for tune; with --add-to, where the backbone is now if not where it was.")
    ] = None,
    option: MethodOption = None,
    head: Head = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0, or the family's]")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    checkpoints: CheckpointFolder = None,
    out: Annotated[Path | None, typer.Option(help="Family folder. [default: --add-to, or runs/family]")] = None,
    json: Json = False,
) -> None:
    """Tune several tasks together, over one prompt that they share."""
    from cuecraft.core.checkpoints import Keeping
    from cuecraft.runs import MultitaskRequest, run_multitask

    request = MultitaskRequest(
        tasks=pairs_of(task),
        dev=pairs_of(dev or []),
        test=pairs_of(test or []),
        test_size=test_size,
        text_columns=tuple(text_column or ["text"]),
        label_column=label_column,
        add_to=add_to,
        model=model,
        options=pairs_of(option or []),
        head=head,
        seed=seed,
        device=device,
        dtype=dtype,
        local_files_only=local_files_only,
        checkpoints=Keeping(checkpoints) if checkpoints else None,
        out=out or add_to or Path("runs/family"),
    )
    with display.progress() as started:
        document = run_multitask(request, started)
    display.print_json(document) if json else display.print_family(document)


@app.command()
def mix(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts of the method lora, of one task and model.")],
    weights: Annotated[str, typer.Option(help="Such as 0.5,0.5; one for each artifact.")],
    out: Annotated[Path, typer.Option(help="Artifact folder of the mix.")],
    combination: Annotated[str, typer.Option(help="cat (the exact weighted sum), linear or svd, as in PEFT.")] = "cat",
    model: BackboneNow = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Mix LoRA adapters, weighted, into one artifact."""
    from cuecraft.runs import run_mix

    try:
        shares = [float(share) for share in weights.split(",")]
    except ValueError:
        raise MethodError(f"--weights {weights!r} are no numbers; write for instance 0.5,0.5") from None
    where = {"model": model, "device": device, "dtype": dtype, "local_files_only": local_files_only}
    document = run_mix(artifacts, shares, combination, where, out)
    display.print_json(document) if json else display.print_mix(document)
