"""Commands that use artifacts: predict, show, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuecraft.cli import display
from cuecraft.cli.app import app
from cuecraft.cli.from_spec import Fields
from cuecraft.cli.options import (
    Delimiter,
    Json,
    SkipBadRows,
    made_folder,
    named_folders,
    names_of,
    reading_of,
)
from cuecraft.core.errors import DataError
from cuecraft.data.files import STDIN
from cuecraft.task.sections import BackboneSection, FamilyData, ModelSection, WritingSection

_LISTED = 10  # options of a text that JSON has, unless all are asked for
_PROMPT_FIRST = "begins with {prompt}, such as '{prompt}{text} It was{mask}'"


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact, a run or an export.")],
    backbone: BackboneSection,
    columns: Annotated[FamilyData, Fields(("options_column", "separator"))],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; by default lines of stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet file, or .txt with a text a line.")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column of text in --file; by default the template's fields.")
    ] = None,
    delimiter: Delimiter = None,
    skip_bad_rows: SkipBadRows = False,
    prompt: Annotated[str | None, typer.Option(help="Which of an export's prompts, where it holds several.")] = None,
    json: Json = False,
    all_options: Annotated[
        bool,
        typer.Option(
            "--all-options",
            help=f"With --json: the probability of every option; without it, of more than {_LISTED} that all texts "
            f"share, those of the answer and of the {_LISTED} likeliest.",
        ),
    ] = False,
) -> None:
    """Classify texts with a tuned prompt."""
    from cuecraft.runs import predict_records, read_texts
    from cuecraft.task.answers import AnswerColumns

    reading = reading_of(delimiter, skip_bad_rows)
    if texts and file:
        raise DataError("texts were given both as arguments and in --file; give one of them")
    file = file if texts or file else Path(STDIN)
    artifact = made_folder(artifact)
    with display.progress() as started:
        answers = AnswerColumns(options=columns.options_column, separator=columns.separator)
        records = read_texts(artifact, texts or [], file, text_column, reading, answers)
        where = backbone.model_dump()
        most = None if all_options else _LISTED
        document = predict_records(artifact, records, prompt, where, started("predicting"), most)
        document |= reading.document()
    display.print_json(document) if json else display.print_predictions(document["predictions"])


@app.command()
def show(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, or that of a run.")], json: Json = False
) -> None:
    """Show what an artifact holds."""
    from cuecraft.artifact import load_artifact
    from cuecraft.runs.made import artifact_of

    folder = artifact_of(artifact)
    found = load_artifact(folder)
    if json:
        display.print_json(found.manifest.model_dump(mode="json"))
    else:
        display.print_artifact(found, str(folder))


@app.command("export")
def export_(
    artifacts: Annotated[
        list[str],
        typer.Argument(help="Folder of an artifact or a run; several (NAME=FOLDER for a name) become one graph."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    backbone: BackboneSection,
    kind: Annotated[
        str,
        typer.Option("--format", help="onnx or openvino (one graph, the model in it), peft or safetensors (a prompt)."),
    ] = "peft",
    precision: Annotated[str, typer.Option(help="Of a graph: fp32, fp16 or int8.")] = "fp32",
    texts: Annotated[
        Path | None, typer.Option(help="Unlabelled texts of the task to measure agreement by; int8 needs them.")
    ] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column of text in --texts; repeat it.")] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of labels that a graph has to keep; 0 to take the best.")
    ] = 0.99,
    truncation: Annotated[str, typer.Option(help="What happens to texts too long for a graph: cut or refuse.")] = "cut",
    json: Json = False,
) -> None:
    """Write artifacts as one graph that needs no PyTorch, or a prompt as a folder of another library."""
    from cuecraft.core.options import make_options
    from cuecraft.export.commands import ExportRequest, run_export

    given = {
        "format": kind,
        "precision": precision,
        "texts": texts,
        "text_columns": tuple(text_column or ()),
        "min_agreement": min_agreement,
        "truncation": truncation,
        **backbone.model_dump(),
    }
    request = make_options(ExportRequest, given)
    with display.progress() as started:
        document = run_export(named_folders(artifacts), out, request, started("exporting"))
    display.print_json(document) if json else display.print_exported(document)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of a PEFT adapter: prompt tuning, P-tuning or prefix-tuning.")],
    out: Annotated[Path, typer.Option(help="Artifact folder.")],
    model: Annotated[ModelSection, Fields(without=("head",))],
    task: Annotated[WritingSection, Fields(("template", "label_words"), says={"template": _PROMPT_FIRST})],
    classes: Annotated[
        str | None, typer.Option(help="Classes with commas between, where their names are their words.")
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take an adapter that names another base model, with a warning.")
    ] = False,
    json: Json = False,
) -> None:
    """Make an artifact of a PEFT adapter; one that `export` wrote needs no template and no words."""
    from cuecraft.export.commands import run_import

    names, words = names_of(classes), task.label_words
    where = (model.device, model.dtype, model.local_files_only)
    document = run_import(folder, model.name, task.template, words, names, out, *where, any_base)
    display.print_json(document) if json else display.page.print(f"{document['artifact']} written", markup=False)
