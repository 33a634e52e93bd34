"""Arguments and options that several commands share, or that are long; and what the words of a command line mean."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuecraft.core.errors import BulkError, DataError, ExportError, LabelWordError, MethodError, ServeError
from cuecraft.data.files import check_is_path

if TYPE_CHECKING:
    from cuecraft.data import Reading
    from cuecraft.task.chat import ChatChoice


class Backend(StrEnum):
    """What a command runs on."""

    LOCAL = "local"
    RAY = "ray"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Model = Annotated[str, typer.Option(help="demo:smollm2-135m (or another), a local folder, a GGUF file, or a Hub name.")]
BackboneNow = Annotated[str | None, typer.Option(help="Where the backbone is now, if not where it was.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Seeds = Annotated[
    str | None,
    typer.Option(help="Such as 0,1,2: an artifact for each, mean and sd; OUT is their ensemble."),
]
Device = Annotated[str, typer.Option(help="A torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="auto (by the device), float32, bfloat16, float16, or nf4 (4 bits, GPU).")]


Train = Annotated[
    str,
    typer.Argument(help="CSV, TSV, JSONL or Parquet file, demo: data, or a data set name; without labels also .txt."),
]
Dev = Annotated[str | None, typer.Option(help="Examples to choose and stop by.")]
Test = Annotated[str | None, typer.Option(help="Held-out examples, for reporting only.")]
TestSize = Annotated[
    int | None, typer.Option(min=1, help="Test rows to draw: from --test, or from what --shots leaves of TRAIN.")
]
TextColumn = Annotated[list[str] | None, typer.Option(help="Column of text; repeat for several fields.")]
Delimiter = Annotated[
    str | None,
    typer.Option(help=r"Between the cells of CSV and TSV, such as ';' or '\t'. [default: comma, and tab for .tsv]"),
]
SkipBadRows = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used (empty text, no label); each is named."),
]
LabelColumn = Annotated[str, typer.Option(help="Column of class names.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="auto (chooses by itself), zero-shot, in-context, autoprompt, straight-through, prompt-tuning, p-tuning, "
        "prefix-tuning, p-tuning-v2, deep-cue, first-order, contrastive, hybrid, soup, linear-probe, embedding-probe, "
        "lora, lora-prompt or full. "
        "[default: auto]"
    ),
]
TemplateText = Annotated[str | None, typer.Option(help=r"Such as 'Review: {text}{prompt:\nSentiment:}{mask}'.")]
ChatSwitch = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Write texts by the tokenizer's chat template. [default: auto and advise try both without --template]",
    ),
]
SystemTurn = Annotated[str | None, typer.Option("--system", help="What the system says in a chat; implies --chat.")]
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
Classes = Annotated[str | None, typer.Option(help="With --unlabeled: classes with commas between.")]
Prior = Annotated[
    list[str] | None,
    typer.Option(help="With --unlabeled: each class's share, 0.9,0.1 in their order, or CLASS=0.9 for each."),
]
Shots = Annotated[
    int | None, typer.Option(min=1, help="Examples of each class to draw from TRAIN, and as many again for dev.")
]
First = Annotated[
    int | None, typer.Option(min=1, help="Learn from the first N rows of TRAIN alone and test on the later ones.")
]
Head = Annotated[str | None, typer.Option(help="causal, masked or sequence; by default what the checkpoint has.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of one input at most.")]
TimeLimit = Annotated[
    float | None, typer.Option(min=0, help="Seconds for reading, search, training and testing together.")
]
Offline = Annotated[bool, typer.Option("--local-files-only", help="Never ask the Hub for a model.")]
CheckpointFolder = Annotated[
    Path | None, typer.Option(help="Keep the training's state here; after a crash the same command continues from it.")
]
Out = Annotated[Path | None, typer.Option(help="Artifact folder. [default: runs/METHOD-SEED]")]


def flag_of(place: str) -> str:
    """Return what the command line calls an option, given its key in a recipe."""
    name = place.rpartition(".")[2]
    return name.upper() if place == "data.train" else "--" + name.replace("_", "-")


def pairs_of(values: list[str]) -> dict[str, Any]:
    """Return values by name.

    Raises:
        MethodError: something else than NAME=VALUE, or a name given twice.
    """
    pairs = [value.partition("=") for value in values]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise MethodError(f"{name + equals + value!r} is not NAME=VALUE; write for instance epochs=10")
        if sum(name == other for other, _, _ in pairs) > 1:
            raise MethodError(f"{name!r} is given twice; give it once")
    return {name: value for name, _, value in pairs}


def words_of(values: list[str]) -> dict[str, list[str]] | None:
    """Return label words by class; a class's name may have an equals sign, a word may not. None for no words.

    Raises:
        LabelWordError: something else than CLASS=word.
    """
    found: dict[str, list[str]] = {}
    for value in values:
        name, equals, words = value.rpartition("=")
        if not (name and equals and words):
            raise LabelWordError(f"{value!r} is not CLASS=word; write for instance positive=great,good")
        found.setdefault(name, []).extend(words.split(","))
    return found or None


def made_folder(folder: Path) -> Path:
    """Return the folder that answers: of a run, what it made; else the folder itself, of an artifact or an export."""
    from cuecraft.export.runtime import is_export

    if is_export(folder):  # PyTorch is not needed then, and may not be there
        return folder
    if find_spec("torch") is None:
        raise ExportError(
            f"{folder}: holds no exported graph that can be read, and anything else needs PyTorch; check the path, or "
            "install torch"
        )
    from cuecraft.runs.made import artifact_of

    return artifact_of(folder)


def reading_of(delimiter: str | None, skip_bad_rows: bool = False) -> Reading:
    """Return how files are read.

    Raises:
        DataError: the delimiter cannot be used.
    """
    from cuecraft.data import BadRows, Reading
    from cuecraft.data.files import check_delimiter

    return Reading(check_delimiter(delimiter), BadRows() if skip_bad_rows else None)


def lines_of(texts: list[str] | None, file: Path | None) -> list[str]:
    """Return texts given as arguments, or else the lines of stdin that are not blank; none where there is a file.

    Raises:
        DataError: there are both texts and a file.
    """
    if texts and file:
        raise DataError("texts were given both as arguments and in --file; give one of them")
    if texts or file:
        return texts or []
    from cuecraft.data.texts import stdin_texts

    return stdin_texts()


def names_of(value: str | None) -> tuple[str, ...] | None:
    """Return names with commas between."""
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


def numbers_of(value: str | None) -> tuple[int, ...] | None:
    """Return whole numbers with commas between; None for no value.

    Raises:
        MethodError: something else.
    """
    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise MethodError(f"{value!r} is not numbers with commas between; write for instance 0,1,2") from None


def unescaped(template: str | None) -> str | None:
    r"""Let `\n` and `\t` be written in a shell's quotes."""
    return template and template.replace("\\n", "\n").replace("\\t", "\t")


def chat_of(chat: bool | None, system: str | None) -> ChatChoice | None:
    """Return what is asked of the tokenizer's chat template.

    Raises:
        TemplateError: a turn is given and chat is off.
    """
    if chat is None and system is None:
        return None
    from cuecraft.task.chat import given_turns

    return given_turns(chat, {"system": unescaped(system)})


def named_folders(arguments: list[str]) -> dict[str, Path]:
    """Return the folder that answers for each id, of NAME=FOLDER; a folder without an id has its own name.

    An exported folder that holds several prompts stands for all of them, by their names there; with an id, for that
    one of them.

    Raises:
        ServeError: two would have the same id.
        ExportError: an exported folder is damaged.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, folder = name_and_folder(argument)
        path = made_folder(folder)
        names = [name] if name is not None else _names_in(path) or [folder.resolve().name]
        for own in names:
            if own in found:
                raise ServeError(f"two prompts would have the id {own!r}; give each one of its own, NAME=FOLDER")
            found[own] = path
    return found


def name_and_folder(argument: str) -> tuple[str | None, Path]:
    """Return both parts of NAME=FOLDER; no name where the argument as a whole is a path that is there.

    Raises:
        DataError: the folder is an address.
    """
    name, equals, folder = argument.partition("=")
    check_is_path(argument)
    check_is_path(folder)
    try:
        is_named = bool(equals) and not Path(argument).exists()
    except OSError:  # too long for a name, so maybe a text
        is_named = True
    return (name, Path(folder)) if is_named else (None, Path(argument))


def _names_in(folder: Path) -> list[str]:
    """Return the names of the prompts that an exported folder holds, where it holds several."""
    from cuecraft.export.runtime import is_export
    from cuecraft.export.runtime.manifest import EXPORT

    names = [own.name for own in EXPORT.read(folder).prompts] if is_export(folder) else []
    return names if len(names) > 1 else []


def share_of(value: str | None) -> float | None:
    """Return a share given as `1%` or `0.01`; None for no value.

    Raises:
        BulkError: something else.
    """
    if value is None:
        return None
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise BulkError(f"{value!r} is no share; write for instance 1% or 0.01") from None
