"""Weighted mixes of LoRA adapters, through PEFT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.weights import LoraSpec, lora_config, require_peft, shared_copy
from cuecraft.errors import ArtifactError
from cuecraft.prompts import AnyPrompt, Artifact, Calibration, HardPrompt, StoredWeights, with_head

#: Ways of PEFT's `add_weighted_adapter`: `cat` is the weighted sum of the adapters' products exactly, of summed rank;
#: `linear` mixes the factors, of the same rank; `svd` is the sum's best approximation of the largest rank.
Combination = Literal["cat", "linear", "svd"]


def mix_lora(
    artifacts: Sequence[Artifact], weights: Sequence[float], backbone: AnyBackbone, combination: Combination = "cat"
) -> Artifact:
    """Return the weighted mix of LoRA artifacts that were tuned from the same prompt.

    Class heads and calibrations are averaged, by the weights' shares in their sum. Whether the mix is any good has to
    be measured.

    Args:
        artifacts: made with the method `lora`, on the same backbone, template and classes.
        weights: one for each.
        backbone: the model that they were made for.
        combination: how PEFT mixes adapters.

    Raises:
        ArtifactError: the artifacts cannot be mixed, or were made for another backbone.
        BackboneError: PEFT is missing.
    """
    _check(artifacts, weights, backbone)
    first = artifacts[0]
    stored = [artifact.weights for artifact in artifacts if artifact.weights is not None]
    mixed = _mixed(backbone, stored, weights, combination)
    calibrations = [artifact.calibration for artifact in artifacts]
    bias = torch.tensor([calibration.bias for calibration in calibrations], dtype=torch.float64)
    share = torch.tensor(weights, dtype=torch.float64)
    share = share / share.sum()
    scale = float(sum(s * calibration.scale for s, calibration in zip(share.tolist(), calibrations, strict=True)))
    return Artifact.create(
        _mixed_heads([artifact.prompt for artifact in artifacts], share),
        Calibration(tuple((share @ bias).tolist()), scale),
        first.task,
        backbone,
        method="lora-mix",
        method_options={
            "combination": combination,
            "weights": list(weights),
            "of": [artifact.manifest.artifact_sha256 for artifact in artifacts],
        },
        seed=first.manifest.seed,
        metrics={},
        data=first.manifest.data,
        classes=first.classes,
        weights=mixed,
    )


def _check(artifacts: Sequence[Artifact], weights: Sequence[float], backbone: AnyBackbone) -> None:
    if len(artifacts) < 2 or len(artifacts) != len(weights):
        raise ArtifactError(
            f"{len(artifacts)} artifacts and {len(weights)} weights; give two or more, and a weight each"
        )
    if not (all(math.isfinite(weight) for weight in weights) and sum(weights) > 0):
        raise ArtifactError("the weights must be finite numbers that add up to more than zero")
    first = artifacts[0]
    for number, artifact in enumerate(artifacts, start=1):
        if not (artifact.weights and isinstance(artifact.weights.spec, LoraSpec)):
            raise ArtifactError(f"artifact {number} ({artifact.manifest.method}) has no LoRA; mix artifacts of `lora`")
        artifact.check_backbone(backbone)
        if artifact.others:
            raise ArtifactError(f"artifact {number} holds several prompts; mix artifacts of one prompt each")
        if artifact.task != first.task or artifact.classes != first.classes:
            raise ArtifactError(f"artifact {number} has another template or other classes; mix artifacts of one task")
        if artifact.weights.spec.targets != first.manifest.weights.targets:  # type: ignore[union-attr]
            raise ArtifactError(f"artifact {number} adapts other layers; mix artifacts of the same targets")
        if len({own.prompt.head.scale for own in (artifact, first) if own.prompt.head}) > 1:
            raise ArtifactError(f"artifact {number} has a class head on other features; mix artifacts of the same loss")
        if not _same_words(artifact.prompt, first.prompt):
            raise ArtifactError(f"artifact {number} stands on another prompt; mix artifacts that share their words")


def _same_words(one: AnyPrompt, other: AnyPrompt) -> bool:
    return isinstance(one, HardPrompt) and isinstance(other, HardPrompt) and one.token_ids == other.token_ids


def _mixed_heads(prompts: Sequence[AnyPrompt], share: Tensor) -> AnyPrompt:
    heads = [prompt.head for prompt in prompts if prompt.head is not None]
    if not heads:
        return prompts[0]
    parts = list(zip(share.float().tolist(), heads, strict=True))
    weight, bias = sum(s * h.weight for s, h in parts), sum(s * h.bias for s, h in parts)
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return with_head(prompts[0], replace(heads[0], weight=weight, bias=bias))


def _mixed(
    backbone: AnyBackbone, parts: Sequence[StoredWeights], weights: Sequence[float], combination: Combination
) -> StoredWeights:
    """Load all adapters into one PEFT model, let it mix them, and take the mix out."""
    require_peft()
    from peft import get_peft_model

    model = shared_copy(backbone.model)
    names = [f"m{number}" for number in range(len(parts))]
    peft = None
    for name, part in zip(names, parts, strict=True):
        assert isinstance(part.spec, LoraSpec)
        config = lora_config(model, part.spec)
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
        _fill(peft.get_base_model(), part.values, name)
    assert peft is not None
    try:
        peft.add_weighted_adapter(names, list(weights), "mix", combination_type=combination)
    except ValueError as error:  # such as `linear` over adapters of unequal rank
        raise ArtifactError(f"these adapters cannot be mixed: {' '.join(str(error).split())[:200]}") from error
    found = {
        name.replace(".mix.", ".default."): parameter.detach().clone()
        for name, parameter in peft.get_base_model().named_parameters()
        if ".mix." in name
    }
    config = peft.peft_config["mix"]
    spec = parts[0].spec
    assert isinstance(spec, LoraSpec)
    return StoredWeights(spec.model_copy(update={"rank": int(config.r), "alpha": float(config.lora_alpha)}), found)


@torch.no_grad()
def _fill(model: torch.nn.Module, values: Mapping[str, Tensor], adapter: str) -> None:
    own = dict(model.named_parameters())
    for name, value in values.items():
        own[name.replace(".default.", f".{adapter}.")].copy_(value)
