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

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cuecraft.backbone.rendering import HeadKind
from cuecraft.errors import ExportError
from cuecraft.storage import digest, file_sha256
from cuecraft.task.entry import TaskEntry

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
EXPORT_VERSION = 1


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
        floor: share below which the export would have been refused; None where it was told not to be.
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


class ExportManifest(_Part):
    """What `manifest.json` of an exported folder holds."""

    export_version: int = EXPORT_VERSION
    format: Literal["onnx", "openvino"]
    precision: Literal["fp32", "fp16", "int8"]
    recipe: str
    graph: str
    artifact_sha256: str
    backbone: ModelEntry
    task: TaskEntry
    prompt_length: int
    constant_ids: int
    padding: Literal["left", "right"]
    span: list[FieldEntry | IdsEntry]
    max_text_tokens: int | None
    truncation: Literal["cut", "refuse"]
    tokens: TokensEntry
    agreement: AgreementEntry
    tried: list[TriedEntry]
    versions: dict[str, str]
    files: dict[str, str]
    export_sha256: str = ""

    def signed(self) -> ExportManifest:
        """Return the manifest with its own hash in it."""
        return self.model_copy(update={"export_sha256": own_sha256(self.model_dump(mode="json"))})


def own_sha256(document: dict[str, Any]) -> str:
    """Return the hash of a manifest, its own hash left out."""
    return digest({name: value for name, value in document.items() if name != "export_sha256"})


def is_export(folder: str | Path) -> bool:
    """Tell whether a folder was exported as a graph."""
    try:
        raw = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "export_version" in raw


def read_export(folder: str | Path) -> ExportManifest:
    """Read an exported folder's manifest and check the hashes of all files.

    Raises:
        ExportError: no exported folder, a damaged one, or one of a newer version.
    """
    source = Path(folder)
    path = source / MANIFEST
    if not path.is_file():
        raise ExportError(f"{source}: no exported folder here ({MANIFEST} is missing); check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["export_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path}: is damaged ({error}); restore it or export again") from error
    if not isinstance(version, int) or version > EXPORT_VERSION:
        raise ExportError(
            f"{path}: has version {version}, but this cuecraft reads up to {EXPORT_VERSION}; upgrade cuecraft"
        )
    try:
        manifest = ExportManifest.model_validate(raw)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ExportError(f"{path}: is damaged (at {where!r}); restore it or export again") from error
    if own_sha256(raw) != manifest.export_sha256:
        raise ExportError(f"{path}: was changed after it was written (hash differs); restore it or export again")
    for name, sha256 in manifest.files.items():
        own = source / Path(name).name
        if not own.is_file():
            raise ExportError(f"{source}: {name} is missing; restore the folder or export again")
        if file_sha256(own) != sha256:
            raise ExportError(f"{source}: {name} is damaged (its hash differs); restore the folder or export again")
    return manifest
