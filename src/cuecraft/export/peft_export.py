"""From an artifact to a PEFT folder, or to the tensors of the prompt alone.

=========================  ===============================================================================
adapter_config.json        PEFT's configuration: kind, number of virtual tokens, shapes, name of the base model
adapter_model.safetensors  one tensor, ``prompt_embeddings``: `[P, d]` input embeddings, or of a prefix
                           `[P, n_layers * 2 * n_kv_heads * head_dim]` keys and values
cuecraft.json              what PEFT has no place for: template, label words, calibration, token ids, metrics and
                           trace. PEFT does not read it. With it, importing the folder gives the exported artifact.
=========================  ===============================================================================

A prompt alone, as tensors that any library reads:

==================  =====================================================================================
prompt.safetensors  ``vectors`` `[S, d]` input embeddings; ``offsets`` `[n_layers, S, d]` of a deep cue; ``states``
                    `[n_layers, 2, n_kv_heads, P, head_dim]` of a prefix; ``head.weight`` `[C, d]`, ``head.bias`` `[C]`,
                    or ``head.unit_weight`` in place of the former for features of unit length
prompt.json         the artifact's manifest, the template as ids, and the label words' ids
==================  =====================================================================================
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from cuecraft.artifact import Artifact
from cuecraft.artifact.manifest import Manifest
from cuecraft.backbone import AnyBackbone
from cuecraft.core.errors import ArtifactError
from cuecraft.core.storage import file_sha256, write_folder
from cuecraft.task import Example, Field, PromptSlot, Task
from cuecraft.task.rendering import HeadKind
from cuecraft.task.token_text import special_ids

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


def export_peft(artifact: Artifact, backbone: AnyBackbone, folder: str | Path) -> None:
    """Write a prompt as a folder that `peft.PeftModel.from_pretrained(base_model, folder)` reads.

    Words and vectors become prompt tuning (Lester et al., EMNLP 2021, arXiv 2104.08691), keys and values prefix-tuning
    (Li & Liang, ACL 2021, arXiv 2101.00190). The PEFT model's logits are this library's, before calibration; see
    `cuecraft.export.peft_export` for what is written. A folder that was exported before is replaced in one step.

    Args:
        artifact: the prompt and its task.
        backbone: the causal language model that it was made for.
        folder: where to write.

    Raises:
        ArtifactError: PEFT has no place for such a prompt, or for several that answer together; it was made for another
            backbone; PEFT is not installed; or something else stands in `folder`.
    """
    target = Path(folder)
    check_export_target(target)
    artifact.require_single("a PEFT adapter")
    _require_exportable(artifact)
    artifact.check_backbone(backbone)
    require_prompt_first(backbone, artifact.task)
    with torch.no_grad():
        tensor, config = _adapter(artifact, backbone, _peft())

    def fill(fresh: Path) -> None:
        save_file({TENSOR: tensor.detach().cpu().clone().contiguous()}, fresh / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(fresh))
        beside = _beside(artifact, file_sha256(fresh / WEIGHTS))
        (fresh / BESIDE).write_text(beside.model_dump_json(indent=1) + "\n", encoding="utf-8")

    try:
        write_folder(target, fill)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot write the folder ({error}); choose another") from error


def check_export_target(target: Path) -> None:
    """Raise ArtifactError where something stands that no export has written."""
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if BESIDE not in names or not names <= {CONFIG, WEIGHTS, BESIDE}:
        raise ArtifactError(f"{target}: exists and was not exported by cuecraft; choose another folder or remove it")


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ArtifactError("export to PEFT needs an extra; pip install 'cuecraft[peft]'") from error


def _require_exportable(artifact: Artifact) -> None:
    """Raise ArtifactError where PEFT's virtual tokens cannot stand for a prompt."""
    prompt, reason = artifact.prompt, None
    if artifact.manifest.backbone.head != HeadKind.CAUSAL:
        reason = f"it is for a {artifact.manifest.backbone.head} backbone, and PEFT's prompts are for causal models"
    elif artifact.weights is not None:
        reason = "it stands on tuned weights, which a PEFT prompt does not hold"
    elif prompt.head is not None:
        reason = "it answers through a class head, and a PEFT prompt has none"
    elif prompt.offsets is not None:
        reason = "it is a deep cue, and PEFT has no offsets on layers"
    elif prompt.states is not None and len(prompt.tokens):
        reason = "words stand behind its prefix, and PEFT keeps the prefix alone"
    elif not len(prompt):
        reason = "it is empty"
    if reason:
        raise ArtifactError(f"this prompt cannot be exported to PEFT: {reason}")


def _adapter(artifact: Artifact, backbone: AnyBackbone, peft: Any) -> tuple[Tensor, Any]:
    """Return the adapter's tensor and its configuration."""
    prompt = artifact.prompt
    common = {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": backbone.name,
        "num_virtual_tokens": len(prompt),
        "num_transformer_submodules": 1,
    }
    if prompt.states is not None:
        layers, _, heads, _, width = prompt.states.shape
        # PEFT counts heads and width of keys and values here, not of queries.
        shape = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}
        return flatten_states(prompt.states), peft.PrefixTuningConfig(
            **common, **shape, encoder_hidden_size=heads * width, prefix_projection=False
        )
    text = backbone.model.config.get_text_config()
    shape = {"num_layers": text.num_hidden_layers, "num_attention_heads": text.num_attention_heads}
    vectors = prompt.vectors(backbone.embed)
    return vectors, peft.PromptTuningConfig(**common, **shape, token_dim=vectors.shape[1])


def _beside(artifact: Artifact, sha256: str) -> Beside:
    prompt = artifact.prompt
    return Beside(
        adapter_sha256=sha256,
        token_ids=None if isinstance(prompt.tokens, Tensor) else list(prompt.tokens),
        # The adapter holds the whole prompt, also of what was trained as one of several tasks.
        manifest=artifact.whole().manifest,
        trace=[dict(event) for event in artifact.trace],
    )


TENSORS, DESCRIPTION = "prompt.safetensors", "prompt.json"


def check_tensors_target(target: Path) -> None:
    """Raise ArtifactError where something stands that no such export has written."""
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if target.exists() and names != {TENSORS, DESCRIPTION}:
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
        **(prompt.head.tensors() if prompt.head else {}),
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
        save_file(tensors, fresh / TENSORS)
        document = beside | {"sha256": file_sha256(fresh / TENSORS)}
        (fresh / DESCRIPTION).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    try:
        write_folder(target, fill)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot write the folder ({error}); choose another") from error
