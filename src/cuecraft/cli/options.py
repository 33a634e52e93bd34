"""Arguments and options that several commands share, or that are long."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
