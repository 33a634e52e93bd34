"""Commands that find prompts and what belongs to that: tune, words, advise, multitask, mix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cuecraft.cli import display
from cuecraft.cli.app import app
from cuecraft.cli.from_spec import Fields
from cuecraft.cli.options import (
    AnswerOption,
    CheckpointFolder,
    Delimiter,
    Json,
    MethodName,
    MethodOption,
    Out,
    PresetName,
    Prior,
    Reject,
    SkipBadRows,
    Unlabeled,
    VocabFrom,
    flag_of,
    names_of,
    pairs_of,
    reading_of,
    shares_of,
)
from cuecraft.core.errors import DataError, MethodError
from cuecraft.task.sections import (
    BackboneSection,
    DataSection,
    FamilyData,
    LimitSection,
    ModelSection,
    TaskSection,
    WritingSection,
)

#: The other turns of a chat are for recipes and Python.
_NO_TURNS = ("user", "assistant")
_AUTO_WORDS = "CLASS=word or CLASS=word,word; repeat for each class; or auto, to search them"


@app.command()
def tune(
    data: DataSection,
    model: ModelSection,
    task: Annotated[TaskSection, Fields(without=_NO_TURNS, says={"label_words": _AUTO_WORDS})],
    limits: LimitSection,
    delimiter: Delimiter = None,
    skip_bad_rows: SkipBadRows = False,
    answer_option: AnswerOption = None,
    reject: Reject = None,
    method: MethodName = None,
    preset: PresetName = None,
    option: MethodOption = None,
    vocab_from: VocabFrom = None,
    checkpoints: CheckpointFolder = None,
    out: Out = None,
    unlabeled: Unlabeled = False,
    prior: Prior = None,
    json: Json = False,
) -> None:
    """Find a prompt for labelled texts, or with --unlabeled for texts alone, and write it as an artifact."""
    from cuecraft.core.checkpoints import Keeping
    from cuecraft.methods import make_method
    from cuecraft.runs import RunFiles, RunSpec, run_tune
    from cuecraft.runs.spec import method_section, with_corpus
    from cuecraft.task.answers import with_options

    options = pairs_of(option or []) | ({"preset": preset} if preset else {})
    if unlabeled:
        _check_unlabeled({"method": method, "vocab_from": vocab_from, "checkpoints": checkpoints})
        chosen = "label-free"
        classes = task.classes or list(task.label_words or ())
        options |= {"prior": shares_of(prior, classes)} if prior and classes else {}
    elif prior:
        raise MethodError("--classes and --prior go with --unlabeled; leave them out")
    else:
        chosen = method or "auto"
        options = with_corpus(chosen, options, vocab_from)
        make_method(chosen, options)
    given = limits.model_dump(exclude_unset=True)
    asked = pairs_of(answer_option or []) | ({"reject": reject} if reject else {})
    if reject and task.answers is None:
        asked |= {"kind": "open-set"}
    task = task.model_copy(update={"answers": with_options(task.answers, asked)})
    spec = RunSpec(model=model, data=data, task=task, tune=method_section(chosen, options), **given)
    seeds = ",".join(map(str, limits.seeds or [limits.seed]))
    keeping = Keeping(checkpoints) if checkpoints else None
    files = RunFiles(out or Path("runs", f"{chosen}-{seeds}"), keeping, reading_of(delimiter, skip_bad_rows))
    with display.progress() as started:
        document = run_tune(spec, files, started)
    display.print_json(document) if json else display.print_tuned(document)


def _check_unlabeled(given: dict[str, object]) -> None:
    """Raise MethodError where something is given that needs labels."""
    for place, value in given.items():
        if value is not None:
            raise MethodError(f"{flag_of(place)} has no meaning with --unlabeled; leave one of them out")


@app.command()
def words(
    data: Annotated[DataSection, Fields(("train", "dev", "shots", "text_columns", "label_column"))],
    model: ModelSection,
    task: Annotated[
        WritingSection,
        Fields(
            ("template", "chat", "system", "label_words"),
            says={"label_words": "CLASS=word to begin with; by default the classes' names"},
        ),
    ],
    limits: Annotated[LimitSection, Fields(("seed",))],
    way: Annotated[str, typer.Option(help="contrast (likelihoods after texts of each class) or probe.")] = "contrast",
    most: Annotated[int, typer.Option("--words", help="Words that a class may get, at most.")] = 8,
    candidates: Annotated[int, typer.Option(help="Words that compete: the likeliest at the answer slot.")] = 200,
    delimiter: Delimiter = None,
    json: Json = False,
) -> None:
    """Find label words: which words of the vocabulary stand for the classes best."""
    from cuecraft.core.options import make_options
    from cuecraft.methods.search.label_words import LabelWordSearch
    from cuecraft.runs import WordsSpec, run_words

    search = make_options(LabelWordSearch, {"way": way, "words": most, "candidates": candidates})
    spec = WordsSpec(model=model, data=data, task=task, search=search, seed=limits.seed)
    with display.progress() as started:
        document = run_words(spec, reading_of(delimiter), started("label words"))
    display.print_json(document) if json else display.print_words(document)


@app.command()
def advise(
    data: Annotated[str, typer.Argument(help="As TRAIN of tune; rows may have no label, or there may be no column.")],
    model: ModelSection,
    columns: Annotated[FamilyData, Fields(("text_columns",))],
    task: Annotated[WritingSection, Fields(without=_NO_TURNS)],
    limits: Annotated[LimitSection, Fields(("seed",))],
    label_column: Annotated[str | None, typer.Option(help="Column of class names, if any. [default: label]")] = None,
    delimiter: Delimiter = None,
    classes: Annotated[str | None, typer.Option(help="Classes with commas between; needed without labels.")] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds of measuring, about.")] = 60.0,
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
        task=task,
        text_columns=columns.text_columns,
        label_column=label_column,
        classes=names_of(classes),
        seed=limits.seed,
        time_limit=time_limit,
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
    data: FamilyData,
    model: Annotated[ModelSection, Fields(says={"name": "as for tune; with --add-to, where the backbone is now"})],
    limits: Annotated[LimitSection, Fields(("seed",), says={"seed": "of everything random, or the family's"})],
    dev: Annotated[list[str] | None, typer.Option(help="NAME=FILE to choose and stop by.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="NAME=FILE of held-out texts, for reporting only.")] = None,
    answers: Annotated[
        list[str] | None, typer.Option(help="NAME=KIND of a task's answers; by default what its training texts show.")
    ] = None,
    add_to: Annotated[Path | None, typer.Option(help="Add the tasks to this family; what it shares stays.")] = None,
    option: MethodOption = None,
    checkpoints: CheckpointFolder = None,
    out: Annotated[Path | None, typer.Option(help="Family folder. [default: --add-to, or runs/family]")] = None,
    json: Json = False,
) -> None:
    """Tune several tasks together, over one prompt that they share."""
    from cuecraft.core.checkpoints import Keeping
    from cuecraft.core.options import make_options
    from cuecraft.methods.train.multitask import MultitaskTuning
    from cuecraft.runs import MultitaskSpec, RunFiles, run_addition, run_multitask

    given: dict[str, Any] = limits.model_dump(exclude_unset=True)
    if option:
        given["multitask"] = make_options(MultitaskTuning, pairs_of(option))
    spec = MultitaskSpec(
        tasks=_tasks(task, {"dev": dev, "test": test, "answers": answers}), data=data, model=model, **given
    )
    keeping = Keeping(checkpoints) if checkpoints else None
    files = RunFiles(out or add_to or Path("runs/family"), keeping)
    with display.progress() as started:
        document = run_addition(spec, add_to, files, started) if add_to else run_multitask(spec, files, started)
    display.print_json(document) if json else display.print_family(document)


def _tasks(train: list[str], others: dict[str, list[str] | None]) -> dict[str, Any]:
    """Return the files of each task, and the kind of its answers where it is named.

    Raises:
        MethodError: something else than NAME=VALUE.
        DataError: something is given for no task.
    """
    found: dict[str, Any] = {name: {"train": path} for name, path in pairs_of(train).items()}
    for part, given in others.items():
        for name, path in pairs_of(given or []).items():
            if name not in found:
                raise DataError(f"--{part} names task {name!r}, but the tasks are {', '.join(found)}")
            found[name][part] = path
    return found


@app.command()
def mix(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts of the method lora, of one task and model.")],
    weights: Annotated[str, typer.Option(help="Such as 0.5,0.5; one for each artifact.")],
    out: Annotated[Path, typer.Option(help="Artifact folder of the mix.")],
    backbone: BackboneSection,
    combination: Annotated[str, typer.Option(help="cat (the exact weighted sum), linear or svd, as in PEFT.")] = "cat",
    json: Json = False,
) -> None:
    """Mix LoRA adapters, weighted, into one artifact."""
    from cuecraft.runs import run_mix

    try:
        shares = [float(share) for share in weights.split(",")]
    except ValueError:
        raise MethodError(f"--weights {weights!r} are no numbers; write for instance 0.5,0.5") from None
    document = run_mix(artifacts, shares, combination, backbone.model_dump(), out)
    display.print_json(document) if json else display.print_mix(document)
