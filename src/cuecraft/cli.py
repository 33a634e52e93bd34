"""The command line: Typer commands; what they do lives elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft import display
from cuecraft.arguments import names_of, pairs_of, unescaped, words_of
from cuecraft.errors import CuecraftError, CuecraftWarning, DataError, MethodError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Automated prompt tuning for frozen language models.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Model = Annotated[str, typer.Option(help="demo:smollm2-135m and kin, a local folder, or a Hub name.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Device = Annotated[str, typer.Option(help="A torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="auto (by the device), float32, bfloat16, float16, or nf4 (4 bits, GPU).")]


Train = Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet file, demo: data, or a data set name.")]
Dev = Annotated[str | None, typer.Option(help="Examples to choose and stop by.")]
Test = Annotated[str | None, typer.Option(help="Held-out examples, for reporting only.")]
TestSize = Annotated[
    int | None, typer.Option(min=1, help="Test rows to draw: from --test, or from what --shots leaves of TRAIN.")
]
TextColumn = Annotated[list[str] | None, typer.Option(help="Column of text; repeat for several fields.")]
LabelColumn = Annotated[str, typer.Option(help="Column of class names.")]
MethodName = Annotated[
    str,
    typer.Option(
        help="auto (chooses by itself), zero-shot, autoprompt, straight-through, prompt-tuning, p-tuning, "
        "prefix-tuning, p-tuning-v2, deep-cue, hybrid, soup, linear-probe, embedding-probe, lora, lora-prompt or full."
    ),
]
TemplateText = Annotated[str | None, typer.Option(help=r"Such as 'Review: {text}{prompt:\nSentiment:}{mask}'.")]
LabelWords = Annotated[list[str] | None, typer.Option(help="CLASS=word or CLASS=word,word; repeat for each class.")]
TuneWords = Annotated[
    list[str] | None,
    typer.Option(help="CLASS=word or CLASS=word,word; repeat for each class; or auto, to search them."),
]
MethodOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE of the method, such as tune.epochs=10; may be repeated.")
]
PresetName = Annotated[
    str | None, typer.Option(help="Of the method auto: fast, good (the default) or best; how much is tried.")
]
VocabFrom = Annotated[
    Path | None,
    typer.Option(help="Search only among words of this corpus: CSV, TSV, JSONL or Parquet (column text), or .txt."),
]
Unlabeled = Annotated[bool, typer.Option("--unlabeled", help="Choose a prompt without reading any label.")]
Prior = Annotated[
    list[str] | None,
    typer.Option(help="With --unlabeled: each class's share, 0.9,0.1 in their order, or CLASS=0.9 for each."),
]
Shots = Annotated[
    int | None, typer.Option(min=1, help="Draw so many examples of each class from TRAIN, and as many for dev.")
]
Head = Annotated[str | None, typer.Option(help="causal, masked or sequence; by default what the checkpoint has.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of one input at most.")]
TimeLimit = Annotated[float | None, typer.Option(min=0, help="Seconds of search and training.")]
Offline = Annotated[bool, typer.Option("--local-files-only", help="Never ask the Hub for a model.")]
CheckpointFolder = Annotated[
    Path | None, typer.Option(help="Keep the training's state here; the same command goes on from it after a crash.")
]
Out = Annotated[Path | None, typer.Option(help="Artifact folder. [default: runs/METHOD-SEED]")]


@app.command()
def tune(
    train: Train,
    dev: Dev = None,
    test: Test = None,
    test_size: TestSize = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = "label",
    model: Model = "demo:smollm2-135m",
    method: MethodName = "hybrid",
    preset: PresetName = None,
    template: TemplateText = None,
    label_words: TuneWords = None,
    option: MethodOption = None,
    vocab_from: VocabFrom = None,
    shots: Shots = None,
    head: Head = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    time_limit: TimeLimit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    checkpoints: CheckpointFolder = None,
    out: Out = None,
    unlabeled: Unlabeled = False,
    classes: Annotated[str | None, typer.Option(help="With --unlabeled: classes with commas between.")] = None,
    prior: Prior = None,
    json: Json = False,
) -> None:
    """Find a prompt for labelled texts, or with --unlabeled for texts alone, and write it as an artifact."""
    from cuecraft.runs import TuneRequest, run_tune

    where: dict[str, Any] = {"device": device, "dtype": dtype, "local_files_only": local_files_only}
    label_free: dict[str, Any] = {"unlabeled": unlabeled, "classes": names_of(classes), "prior": tuple(prior or [])}
    request = TuneRequest(
        train=train,
        dev=dev,
        test=test,
        test_size=test_size,
        text_columns=tuple(text_column or ["text"]),
        label_column=label_column,
        model=model,
        method=method,
        method_options=pairs_of(option or []) | ({"preset": preset} if preset else {}),
        vocab_from=vocab_from,
        template=unescaped(template),
        label_words="auto" if label_words == ["auto"] else words_of(label_words or []),
        shots=shots,
        head=head,
        max_tokens=max_tokens,
        seed=seed,
        time_limit=time_limit,
        checkpoints=checkpoints,
        out=out or Path("runs", f"{'label-free' if unlabeled else method}-{seed}"),
        **where,
        **label_free,
    )
    with display.progress() as started:
        document = run_tune(request, started)
    display.print_json(document) if json else display.print_metrics(document)


@app.command()
def words(
    train: Train,
    dev: Annotated[str | None, typer.Option(help="More examples to choose by.")] = None,
    way: Annotated[str, typer.Option(help="contrast (likelihoods after texts of each class) or probe.")] = "contrast",
    most: Annotated[int, typer.Option("--words", help="Words that a class may get, at most.")] = 8,
    candidates: Annotated[int, typer.Option(help="Words that compete: the likeliest at the answer slot.")] = 200,
    text_column: TextColumn = None,
    label_column: LabelColumn = "label",
    model: Model = "demo:smollm2-135m",
    template: TemplateText = None,
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
    begin = words_of(label_words or [])
    request = WordsRequest(train, dev, *columns, model, options, unescaped(template), begin, shots, head, seed, where)
    with display.progress() as started:
        document = run_words(request, started("label words"))
    display.print_json(document) if json else display.print_words(document)


@app.command()
def advise(
    data: Annotated[str, typer.Argument(help="As TRAIN of tune; rows may have no label, or there may be no column.")],
    model: Model = "demo:smollm2-135m",
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of class names, if any. [default: label]")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes with commas between; needed without labels.")] = None,
    template: TemplateText = None,
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
        str | None, typer.Option(help="Environment variable with its key. [default: OPENAI_API_KEY, where set]")
    ] = None,
    labelled_out: Annotated[Path | None, typer.Option(help="Write the rows that have a label here, as JSONL.")] = None,
    json: Json = False,
) -> None:
    """Say what fits the data: methods, time, memory, and whether tuning is worth it; measures for about a minute."""
    from cuecraft.advise import AdviseRequest, run_advise

    request = AdviseRequest(
        data=data,
        model=model,
        text_columns=tuple(text_column or ["text"]),
        label_column=label_column,
        classes=names_of(classes),
        template=unescaped(template),
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
        checkpoints=checkpoints,
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
    model: Annotated[str | None, typer.Option(help="Where the backbone is now, if not where it was.")] = None,
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


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; by default lines of stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet file, or .txt with a text a line.")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column of text in --file; by default the template's fields.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the backbone is now, if not where it was.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Classify texts with a tuned prompt."""
    from cuecraft.runs import predict_records, read_texts

    if texts and file:
        raise DataError("texts were given both as arguments and in --file; give one of them")
    lines = texts if texts or file else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    with display.progress() as started:
        records = read_texts(artifact, lines or [], file, text_column)
        document = predict_records(artifact, records, model, device, local_files_only, dtype, started("predicting"))
    display.print_json(document) if json else display.print_predictions(document["predictions"])


@app.command()
def show(artifact: Annotated[Path, typer.Argument(help="Artifact folder.")], json: Json = False) -> None:
    """Show what an artifact holds."""
    from cuecraft.prompts import load_artifact

    manifest = load_artifact(artifact).manifest
    if json:
        display.print_json(manifest.model_dump(mode="json"))
    else:
        display.print_manifest(manifest, str(artifact))


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
        str | None, typer.Option(help="demo: model, local folder or Hub name. [default: demo:smollm2-135m]")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Examples of each class drawn for each seed, and for dev.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test rows to draw, the same for all. [default: all]")] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of class names. [default: label]")] = None,
    template: TemplateText = None,
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


@app.command("export")
def export_(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    kind: Annotated[str, typer.Option("--format", help="peft, so far.")] = "peft",
    model: Annotated[str | None, typer.Option(help="Where the backbone is now, if not where it was.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Write a prompt as a folder of another library."""
    from cuecraft.interop.commands import run_export

    document = run_export(artifact, kind, out, model, device, dtype, local_files_only)
    display.print_json(document) if json else display.page.print(f"{document['folder']} written", markup=False)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of a PEFT adapter: prompt tuning, P-tuning or prefix-tuning.")],
    out: Annotated[Path, typer.Option(help="Artifact folder.")],
    model: Model = "demo:smollm2-135m",
    template: Annotated[
        str | None, typer.Option(help="Begins with {prompt}, such as '{prompt}{text} It was{mask}'.")
    ] = None,
    label_words: LabelWords = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes with commas between, where their names are their words.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    local_files_only: Offline = False,
    json: Json = False,
) -> None:
    """Make an artifact of a PEFT adapter; one that `export` wrote needs no template and no words."""
    from cuecraft.interop.commands import run_import

    names = names_of(classes)
    document = run_import(
        folder, model, unescaped(template), words_of(label_words or []), names, out, device, dtype, local_files_only
    )
    display.print_json(document) if json else display.page.print(f"{document['artifact']} written", markup=False)


def main() -> None:
    """Run the command line; exit code 2 for a mistake of the user, 1 for anything else that fails."""
    warnings.simplefilter("always", CuecraftWarning)
    show_others = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, CuecraftWarning):
            display.warn(str(message))
        else:
            show_others(message, category, *rest, **more)

    warnings.showwarning = show_warning
    try:
        app()
    except CuecraftError as error:
        display.fail(str(error))
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
