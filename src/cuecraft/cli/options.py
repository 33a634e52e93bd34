"""Arguments and options that several commands share, or that are long; and what the words of a command line mean."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuecraft.core.errors import BulkError, DataError, ExportError, LabelWordError, MethodError, ServeError
from cuecraft.data.files import check_is_path

if TYPE_CHECKING:
    from cuecraft.data import Reading


class Backend(StrEnum):
    """What a command runs on."""

    LOCAL = "local"
    RAY = "ray"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]


Delimiter = Annotated[
    str | None,
    typer.Option(help=r"Between the cells of CSV and TSV, such as ';' or '\t'. [default: comma, and tab for .tsv]"),
]
SkipBadRows = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used (empty text, no label); each is named."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="auto (chooses by itself), zero-shot, in-context, autoprompt, straight-through, prompt-tuning, p-tuning, "
        "prefix-tuning, p-tuning-v2, deep-cue, first-order, contrastive, hybrid, soup, linear-probe, embedding-probe, "
        "lora, lora-prompt or full. "
        "[default: auto]"
    ),
]
MethodOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE of the method, such as tune.epochs=10; may be repeated.")
]
AnswerOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE of the kind of answers, such as scoring=token; may be repeated.")
]
Reject = Annotated[
    str | None,
    typer.Option(
        help="Label of rows of no class, and the answer to such texts; short for --answers open-set with reject=LABEL.",
        metavar="LABEL",
    ),
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
CheckpointFolder = Annotated[
    Path | None, typer.Option(help="Keep the training's state here; after a crash the same command continues from it.")
]
Out = Annotated[Path | None, typer.Option(help="Artifact folder. [default: runs/METHOD-SEED]")]


#: Options that the command line calls otherwise than recipes and Python do.
FLAGS = {"name": "model", "text_columns": "text_column", "fields": "field"}


def flag_of(place: str) -> str:
    """Return what the command line calls an option, given its key in a recipe."""
    name = place.rpartition(".")[2]
    name = FLAGS.get(name, name)
    return name.upper() if place == "data.train" else "--" + name.replace("_", "-")


def shares_of(values: list[str], classes: Sequence[str]) -> tuple[float, ...]:
    """Return each class's share, of `0.9,0.1` in their order, or `ham=0.9` for each.

    Raises:
        DataError: something else than numbers, a share of no class, or a class without one.
    """
    from cuecraft.methods.search.label_free import class_shares

    pairs = [value.rpartition("=") for value in values]
    try:
        if any(name for name, _, _ in pairs):
            return class_shares({name: float(share) for name, _, share in pairs}, classes)
        return class_shares([float(share) for value in values for share in value.split(",")], classes)
    except DataError:
        raise
    except ValueError:
        raise DataError(
            f"--prior {' '.join(values)} is not shares of classes; write 0.9,0.1, or CLASS=0.9 for each class"
        ) from None


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
