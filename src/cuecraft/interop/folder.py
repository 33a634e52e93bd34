"""What a PEFT folder holds, and what stands next to it.

=========================  ===============================================================================
adapter_config.json        PEFT's configuration: kind, number of virtual tokens, shapes, name of the base model
adapter_model.safetensors  one tensor, ``prompt_embeddings``: `[P, d]` input embeddings, or of a prefix
                           `[P, n_layers * 2 * n_kv_heads * head_dim]` keys and values
cuecraft.json              what PEFT has no place for: template, label words, calibration, token ids, metrics and
                           trace. PEFT does not read it. With it, importing the folder gives the exported artifact.
=========================  ===============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.token_ids import special_ids
from cuecraft.errors import ArtifactError
from cuecraft.prompts.manifest import Manifest
from cuecraft.task import Example, PromptSlot, Task

CONFIG, WEIGHTS, PICKLED, BESIDE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "cuecraft.json",
)
TENSOR = "prompt_embeddings"
BESIDE_VERSION = 1


class Beside(BaseModel):
    """What `cuecraft.json` holds.

    Args:
        schema_version: of this document.
        adapter_sha256: of `adapter_model.safetensors`; another one was trained on since.
        token_ids: of a prompt in words, and none for a prefix that stands before no words; None for vectors.
        manifest: the artifact's.
        trace: the artifact's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = BESIDE_VERSION
    adapter_sha256: str
    token_ids: list[int] | None
    manifest: Manifest
    trace: list[dict[str, Any]]


def read_beside(folder: Path) -> Beside | None:
    """Return what stands in a folder's `cuecraft.json`; None where there is none.

    Raises:
        ArtifactError: it is damaged, or of a newer schema.
    """
    path = folder / BESIDE
    if not path.is_file():
        return None
    try:
        found = Beside.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ArtifactError(
            f"{path}: is damaged or of a newer cuecraft ({detail}); restore it, or remove it and give template and "
            "label words"
        ) from error
    if found.schema_version > BESIDE_VERSION:
        raise ArtifactError(f"{path}: has schema version {found.schema_version}; upgrade cuecraft")
    return found


def flatten_states(states: Tensor) -> Tensor:
    """Return keys and values `[n_layers, 2, n_kv_heads, P, head_dim]` in PEFT's order `[P, n_layers * 2 * width]`."""
    return states.permute(3, 0, 1, 2, 4).reshape(states.shape[3], -1)


def unflatten_states(flat: Tensor, shape: tuple[int, int, int, int, int]) -> Tensor:
    """Return PEFT's `[P, n_layers * 2 * width]` as keys and values `[n_layers, 2, n_kv_heads, P, head_dim]`."""
    layers, two, heads, length, width = shape
    return flat.view(length, layers, two, heads, width).permute(1, 2, 3, 0, 4).contiguous()


def require_prompt_first(backbone: AnyBackbone, task: Task) -> None:
    """Raise ArtifactError where anything stands before the prompt: PEFT puts its virtual tokens before everything."""
    template = task.template
    text = Example(dict.fromkeys(template.field_names, "a"))
    if not backbone.renderer(task).render([text])[0].before:
        return
    source = template.source
    if task.shots:
        raise ArtifactError(
            f"{len(task.shots)} labelled examples stand before the prompt, and PEFT puts virtual tokens first; only a "
            "prompt without examples can be exported there"
        )
    if not isinstance(template.pieces[0], PromptSlot):
        raise ArtifactError(
            f"template {source!r}: the prompt stands after other text, and PEFT puts virtual tokens first; "
            "only a template that begins with {prompt} has the same numbers there"
        )
    start, _ = special_ids(backbone.tokenizer)
    shown = " ".join(backbone.tokenizer.convert_ids_to_tokens(list(start)))
    raise ArtifactError(
        f"the tokenizer of {backbone.name} puts {shown} before every text; PEFT's virtual tokens stand before it, and "
        "cuecraft's prompt behind it, so the numbers would differ"
    )
