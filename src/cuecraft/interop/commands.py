"""What the commands `export` and `import` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cuecraft.backbone import load_backbone
from cuecraft.errors import ArtifactError
from cuecraft.interop.exporting import check_export_target, export_peft
from cuecraft.interop.importing import import_peft
from cuecraft.prompts import check_target, load_artifact


def run_export(
    folder: Path,
    kind: str,
    out: Path,
    model: str | None,
    device: str,
    dtype: str,
    local_files_only: bool,
) -> dict[str, Any]:
    """Export an artifact; return the document of `cuecraft export --json`.

    Raises:
        CuecraftError: anything that the user can mend; nothing is written then.
    """
    if kind != "peft":
        raise ArtifactError(f"format {kind!r} is unknown; choose peft")
    artifact = load_artifact(folder)
    check_export_target(out)
    made_for = artifact.manifest.backbone
    backbone = load_backbone(model or made_for.name, made_for.head, device, local_files_only, dtype)
    export_peft(artifact, backbone, out)
    return {
        "artifact": str(folder),
        "format": kind,
        "folder": str(out),
        "files": sorted(path.name for path in out.iterdir()),
    }


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
) -> dict[str, Any]:
    """Import a PEFT folder as an artifact; return the document of `cuecraft import --json`.

    Raises:
        CuecraftError: anything that the user can mend; nothing is written then.
    """
    check_target(out)
    backbone = load_backbone(model, "causal", device, local_files_only, dtype)
    artifact = import_peft(folder, backbone, template=template, label_words=label_words, classes=classes)
    sha256 = artifact.save(out)
    manifest = artifact.manifest
    return {
        "folder": str(folder),
        "artifact": str(out),
        "artifact_sha256": sha256,
        "method": manifest.method,
        "prompt": manifest.prompt.text,
        "template": manifest.task.template,
        "classes": manifest.task.classes,
    }
