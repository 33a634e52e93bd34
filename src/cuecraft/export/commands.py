"""What the commands `export` and `import` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cuecraft.artifact import Artifact, check_target, load_artifact, member_folders
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import ExportError, named
from cuecraft.core.events import Event
from cuecraft.core.options import Options
from cuecraft.data import Record, subsample
from cuecraft.data.texts import unlabelled
from cuecraft.export import MOST_TEXTS, GraphRequest, check_graph_target, export_graph, own_texts
from cuecraft.export.peft_export import check_export_target, check_tensors_target, export_peft, export_tensors
from cuecraft.export.peft_import import import_peft
from cuecraft.task.sections import BackboneSection


class ExportRequest(BackboneSection, Options):
    """What `cuecraft export` was asked for; see its help for each."""

    format: Literal["onnx", "openvino", "peft", "safetensors"] = Field("peft", description="what is written")
    precision: Literal["fp32", "fp16", "int8"] = Field("fp32", description="of a graph")
    texts: Path | None = Field(None, description="unlabelled texts to measure agreement by")
    text_columns: tuple[str, ...] = Field((), description="columns of text in them; none for the template's fields")
    min_agreement: float = Field(0.99, ge=0, le=1, description="share of labels that a graph has to keep; 0 for any")
    truncation: Literal["cut", "refuse"] = Field("cut", description="what happens to texts too long for a graph")


def run_export(
    folders: Mapping[str, Path],
    out: Path,
    request: ExportRequest,
    report: Callable[[Event], None] = lambda event: None,
) -> dict[str, Any]:
    """Export artifacts by name, several as one graph; return the document of `cuecraft export --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    is_graph = request.format in ("onnx", "openvino")
    if not is_graph and request.precision != "fp32":
        raise ExportError(
            f"{named('precision')} {request.precision} is for graphs; "
            f"leave it out with {named('format')} {request.format}"
        )
    if not is_graph and request.texts is not None:
        raise ExportError(f"{named('texts')} is for graphs; leave it out with {named('format')} {request.format}")
    if is_graph and (request.device, request.dtype) != ("auto", "auto"):
        raise ExportError(
            f"a graph is made on the CPU from float32 weights; leave {named('device')} and {named('dtype')} out"
        )
    if not is_graph and len(folders) > 1:
        raise ExportError(f"{named('format')} {request.format} writes one prompt; export them one by one")
    artifacts = {name: _artifact(folder) for name, folder in folders.items()}
    for name, own in artifacts.items():
        own.require_single(f"an export of {name} to {request.format}")
    artifact = next(iter(artifacts.values()))
    shown = {name: str(folder) for name, folder in folders.items()}
    document: dict[str, Any] = {"artifacts": shown, "format": request.format, "folder": str(out)}
    if request.format == "safetensors":
        check_tensors_target(out)
    elif request.format == "peft":
        check_export_target(out)
    else:
        check_graph_target(out)
    records = _texts(list(artifacts.values()), request) if is_graph else []
    made_for = artifact.manifest.backbone
    device, dtype = ("cpu", "float32") if is_graph else (request.device, request.dtype)
    backbone = load_backbone(request.model or made_for.name, made_for.head, device, request.local_files_only, dtype)
    if request.format == "safetensors":
        export_tensors(artifact, backbone, out)
    elif request.format == "peft":
        export_peft(artifact, backbone, out)
    else:
        wanted = GraphRequest(
            request.format, request.precision, request.truncation, records, request.min_agreement or None
        )
        manifest = export_graph(artifacts, backbone, out, wanted, report)
        document |= {
            "precision": manifest.precision,
            "recipe": manifest.recipe,
            "agreement": manifest.agreement.model_dump(),
            "tried": [own.model_dump() for own in manifest.tried],
            "bytes": sum(path.stat().st_size for path in out.iterdir()),
        }
    return document | {"files": sorted(path.name for path in out.iterdir())}


def _artifact(folder: Path) -> Artifact:
    if member_folders(folder):
        raise ExportError(f"{folder}: holds several seeds; export one of them, such as {member_folders(folder)[0]}")
    return load_artifact(folder)


def _texts(artifacts: Sequence[Artifact], request: ExportRequest) -> list[Record]:
    """Return the texts that agreement is measured on."""
    fields = artifacts[0].task.template.field_names
    if request.texts is not None:
        found = unlabelled(fields, (), request.texts, request.text_columns)
        distinct = {tuple(record.fields.items()): record for record in found}  # a copy tells nothing more
        return subsample(list(distinct.values()), MOST_TEXTS, 0)
    if request.precision == "int8":
        raise ExportError(
            "int8 changes answers, and how much is measured on texts; give unlabelled ones of the task: "
            f"{named('texts')} FILE"
        )
    return own_texts(artifacts)


def run_import(
    folder: Path,
    model: str,
    template: str | None,
    label_words: Mapping[str, Sequence[str]] | None,
    classes: Sequence[str] | None,
    out: Path,
    device: str,
    dtype: str,
    local_files_only: bool,
    any_base: bool,
) -> dict[str, Any]:
    """Import a PEFT folder as an artifact; return the document of `cuecraft import --json`.

    Raises:
        CuecraftError: anything that the user can fix; nothing is written then.
    """
    check_target(out)
    backbone = load_backbone(model, "causal", device, local_files_only, dtype)
    artifact = import_peft(
        folder, backbone, template=template, label_words=label_words, classes=classes, any_base=any_base
    )
    sha256 = artifact.save(out)
    manifest = artifact.manifest
    return {
        "folder": str(folder),
        "artifact": str(out),
        "artifact_sha256": sha256,
        "method": manifest.method,
        "prompt": manifest.prompt.described,
        "template": manifest.task.template,
        "classes": list(artifact.classes),
    }
