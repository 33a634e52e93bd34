"""An exported folder: what its manifest holds, and reading it with its hashes checked.

===================  ============================================================================================
manifest.json        what this module describes
model.onnx           the graph; or ``model.xml`` and ``model.bin`` of OpenVINO
model.onnx.data      weights of a graph of more than 2 GB
tokenizer.json       of the `tokenizers` library
example.py           how to ask it without this library
example.mjs          the same under Node
===================  ============================================================================================
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cuecraft.core.errors import ExportError, named
from cuecraft.core.storage import ManifestKind, digest, manifest_document
from cuecraft.task.rendering import HeadKind
from cuecraft.task.task import TaskEntry

TOKENIZER = "tokenizer.json"
#: What a prompt may be called where several are asked by name.
PROMPT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Inputs of every graph; and of one with several prompts, the numbers of those that are asked.
INPUTS, PROMPTS = ("input_ids", "attention_mask"), "prompts"
EXPORT_VERSION = 3  # 2: the turns of a chat template; 3: the answer space in place of classes and label words
_OWN_HASH = "export_sha256"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Part):
    """The backbone that the graph holds: its name, head and hash, and the positions that it has."""

    name: str
    head: HeadKind
    sha256: str
    max_positions: int | None


class FieldEntry(_Part):
    """Where a field of a text stands among the graph's input ids.

    Args:
        field: its name.
        prefix: what is written in front of it before it is turned into ids.
        strip: whether the text's own leading space is dropped.
    """

    field: str
    prefix: str
    strip: bool


class IdsEntry(_Part):
    """Ids that stand between two fields."""

    ids: list[int]


class TokensEntry(_Part):
    """Ids of special tokens; None where the tokenizer has none."""

    mask: int | None
    unknown: int | None


class AgreementEntry(_Part):
    """How the exported graph's answers compare with PyTorch's in float32.

    Args:
        texts: how many were compared; labels were not read.
        sha256: of the texts.
        labels: share of the texts with the same label, 0 to 1.
        max_difference: of a probability, the largest.
        floor: share below which the export would have been refused; None where that was switched off.
    """

    texts: int
    sha256: str
    labels: float
    max_difference: float
    floor: float | None


class TriedEntry(_Part):
    """A way to the precision that was tried: the share of labels that it keeps, and the largest difference."""

    recipe: str
    labels: float
    max_difference: float


class GraphPrompt(_Part):
    """One prompt of a graph.

    Args:
        name: its id among those of the graph.
        artifact_sha256: of the artifact that it was made of.
        task: template, label words, classes.
        prompt_length: positions that the prompt takes in addition to a text's pieces.
        constant_ids: positions that it and its template take in every text.
        max_text_tokens: ids that one text may have; None for no limit.
    """

    name: str
    artifact_sha256: str
    task: TaskEntry
    prompt_length: int
    constant_ids: int
    max_text_tokens: int | None


class ExportManifest(_Part):
    """What `manifest.json` of an exported folder holds."""

    export_version: int = EXPORT_VERSION
    format: Literal["onnx", "openvino"]
    precision: Literal["fp32", "fp16", "int8"]
    recipe: str
    graph: str
    backbone: ModelEntry
    prompts: list[GraphPrompt] = Field(min_length=1)
    padding: Literal["left", "right"]
    span: list[FieldEntry | IdsEntry]
    truncation: Literal["cut", "refuse"]
    tokens: TokensEntry
    agreement: AgreementEntry
    tried: list[TriedEntry]
    versions: dict[str, str]
    files: dict[str, str]
    export_sha256: str = ""

    def prompt(self, name: str | None) -> GraphPrompt:
        """Return a prompt by name; without one, the only one there is.

        Raises:
            ExportError: there is none of that name, or several are there and none was named.
        """
        names = [own.name for own in self.prompts]
        if name is None and len(names) > 1:
            raise ExportError(
                f"an export of {', '.join(names)} answers by name; name one of them "
                f"({named('prompt')} NAME, or NAME=FOLDER)"
            )
        if name is not None and name not in names:
            raise ExportError(f"an export of {', '.join(names)} holds no prompt {name[:64]!r}; name one of them")
        return self.prompts[0 if name is None else names.index(name)]

    def signed(self) -> ExportManifest:
        """Return the manifest with its own hash in it."""
        return self.model_copy(update={_OWN_HASH: digest(self.model_dump(mode="json"), _OWN_HASH)})


EXPORT = ManifestKind(
    model=ExportManifest,
    version="export_version",
    newest=EXPORT_VERSION,
    sha256=_OWN_HASH,
    error=ExportError,
    folder="exported folder",
    versioned="version",
    remedy="export again",
)


def is_export(folder: str | Path) -> bool:
    """Return whether a folder was exported as a graph."""
    return EXPORT.version in manifest_document(Path(folder))


def read_export(folder: str | Path) -> ExportManifest:
    """Read an exported folder's manifest and check the hashes of all files.

    Raises:
        ExportError: no exported folder, a damaged one, or one of a newer version.
    """
    manifest = EXPORT.read(Path(folder))
    EXPORT.check_files(Path(folder), manifest.files)
    return manifest
