"""A prompt alone, as tensors that any library reads.

==================  =====================================================================================
prompt.safetensors  ``vectors`` `[S, d]` input embeddings; ``offsets`` `[n_layers, S, d]` of a deep cue; ``states``
                    `[n_layers, 2, n_kv_heads, P, head_dim]` of a prefix; ``head.weight`` `[C, d]`, ``head.bias`` `[C]`,
                    or ``head.unit_weight`` in place of the former for features of unit length
prompt.json         the artifact's manifest, the template as ids, and the label words' ids
==================  =====================================================================================
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.errors import ArtifactError
from cuecraft.prompts import Artifact
from cuecraft.prompts.kinds import head_tensors
from cuecraft.storage import file_sha256, write_folder
from cuecraft.task import Field

WEIGHTS, BESIDE = "prompt.safetensors", "prompt.json"


def check_tensors_target(target: Path) -> None:
    """Raise ArtifactError where something stands that no such export has written."""
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if target.exists() and names != {WEIGHTS, BESIDE}:
        raise ArtifactError(f"{target}: exists and was not exported by cuecraft; choose another folder or remove it")


@torch.no_grad()
def export_tensors(artifact: Artifact, backbone: AnyBackbone, folder: str | Path) -> None:
    """Write a prompt's tensors, whole, and what is needed to place them.

    Args:
        artifact: the prompt and its task.
        backbone: the model that it was made for.
        folder: where to write; one that was exported before is replaced in one step.

    Raises:
        ArtifactError: another backbone, tuned weights, several prompts that answer together, or something else stands
            in `folder`.
        TemplateError: the prompt stands between two fields.
    """
    target = Path(folder)
    check_tensors_target(target)
    if artifact.weights is not None:
        raise ArtifactError("this prompt stands on tuned weights, which a prompt alone does not hold; export a graph")
    artifact.require_single("a folder of tensors")
    artifact.check_backbone(backbone)
    prompt, renderer = artifact.prompt, backbone.renderer(artifact.task)
    frame = renderer.frame()
    found: dict[str, Tensor | None] = {
        "vectors": prompt.vectors(backbone.embed),
        "offsets": prompt.offsets,
        "states": prompt.states,
        **head_tensors(prompt.head),
    }
    tensors = {name: own.detach().cpu().clone().contiguous() for name, own in found.items() if own is not None}
    beside = {
        "manifest": artifact.manifest.model_dump(mode="json"),
        "opening": list(frame.opening),
        "closing": list(frame.closing),
        "prompt_in": "opening" if frame.is_first else "closing",
        "prompt_at": frame.at,
        "span": [{"field": own.name} if isinstance(own, Field) else {"ids": list(own)} for own in frame.span],
        "label_ids": [[list(ids) for ids in words] for words in renderer.label_ids],
    }

    def fill(fresh: Path) -> None:
        save_file(tensors, fresh / WEIGHTS)
        document = beside | {"sha256": file_sha256(fresh / WEIGHTS)}
        (fresh / BESIDE).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    try:
        write_folder(target, fill)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot write the folder ({error}); choose another") from error
