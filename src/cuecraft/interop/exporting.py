"""From an artifact to a PEFT folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cuecraft.backbone import AnyBackbone, HeadKind
from cuecraft.errors import ArtifactError
from cuecraft.interop.folder import (
    BESIDE,
    CONFIG,
    TENSOR,
    WEIGHTS,
    Beside,
    flatten_states,
    require_prompt_first,
)
from cuecraft.prompts import Artifact, DeepCue, HardPrompt, PrefixPrompt
from cuecraft.storage import file_sha256, write_folder


def export_peft(artifact: Artifact, backbone: AnyBackbone, folder: str | Path) -> None:
    """Write a prompt as a folder that `peft.PeftModel.from_pretrained(base_model, folder)` reads.

    Words and vectors become prompt tuning (Lester et al., EMNLP 2021, arXiv 2104.08691), keys and values prefix-tuning
    (Li & Liang, ACL 2021, arXiv 2101.00190). The PEFT model's logits are this library's, before calibration; see
    `cuecraft.interop.folder` for what is written. A folder that was exported before is replaced in one step.

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
    elif isinstance(prompt, DeepCue):
        reason = "it is a deep cue, and PEFT has no offsets on layers"
    elif isinstance(prompt, PrefixPrompt) and len(prompt.base):
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
    if isinstance(prompt, PrefixPrompt):
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
    base = prompt.base if isinstance(prompt, PrefixPrompt) else prompt
    return Beside(
        adapter_sha256=sha256,
        token_ids=list(base.token_ids) if isinstance(base, HardPrompt) else None,
        # The adapter holds the whole prompt, also of what was trained as one of several tasks.
        manifest=artifact.whole().manifest,
        trace=[dict(event) for event in artifact.trace],
    )
