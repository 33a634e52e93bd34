"""Fine-tuning baselines in the same training loop: LoRA, LoRA with a prompt, all weights; and weighted mixes of LoRA.

They answer through the same template, label words and calibration as the prompt methods, from the same start, and stop
by the same rule. Mixes of adapters are made by PEFT.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cuecraft.artifact import Artifact, Calibration, Prompt, SoftPrompt, StoredWeights
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.weights import FullSpec, LoraSpec, TunedWeights, Twin, lora_config, require_peft, shared_copy
from cuecraft.core.errors import ArtifactError
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive.training import Loss, train_then_fit_heads, without_head
from cuecraft.methods.gradients import trained_copy
from cuecraft.methods.problem import Calibrated, CalibrationKind, Method, Outcome, Problem
from cuecraft.methods.search.space import filled_start
from cuecraft.methods.train.loop import TrainingOptions, train
from cuecraft.methods.train.soft import require_read
from cuecraft.methods.train.trainable import TrainedHead, embedding_scale
from cuecraft.methods.untuned import begin

#: Ways of PEFT's `add_weighted_adapter`: `cat` is the weighted sum of the adapters' products exactly, of summed rank;
#: `linear` mixes the factors, of the same rank; `svd` is the sum's best approximation of the largest rank.
Combination = Literal["cat", "linear", "svd"]


class TrainedWeights:
    """A twin's weights in training, with a class head where there is one, and the prompt's vectors if asked for.

    Args:
        twin: the weights.
        first: the candidate at step 0.
        learning_rate: AdamW step of the weights.
        head_learning_rate: AdamW step of a class head.
        vectors: the prompt's vectors `[S, d]` to be trained too, and their AdamW step; None to leave the prompt alone.
    """

    def __init__(
        self,
        twin: Twin,
        first: Candidate,
        learning_rate: float,
        head_learning_rate: float,
        vectors: tuple[Tensor, float] | None = None,
    ) -> None:
        self._live = TunedWeights(twin)
        self._first = first
        self._head = TrainedHead(first.prompt.head, head_learning_rate)
        self._groups: list[dict[str, Any]] = [{"params": list(twin.trained.values()), "lr": learning_rate}]
        self._vectors = None
        if vectors is not None:
            self._vectors = trained_copy(vectors[0]).requires_grad_()
            self._groups.append({"params": [self._vectors], "lr": vectors[1]})

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW parameter groups."""
        return [*self._groups, *self._head.groups()]

    def candidate(self) -> Candidate:
        """Return the candidate as a differentiable function of the trained tensors."""
        prompt = self._first.prompt if self._vectors is None else SoftPrompt(self._vectors)
        return Candidate(self._head.on(prompt), self._first.calibration, self._live)

    def snapshot(self) -> Candidate:
        """Return the candidate as it is now, independent of further training."""
        prompt = self._first.prompt if self._vectors is None else SoftPrompt(self._vectors.detach().clone())
        return Candidate(self._head.frozen_on(prompt), self._first.calibration, self._live.snapshot())

    def penalty(self) -> Tensor:
        """Return nothing: weights are not pulled anywhere."""
        return torch.zeros(())


class WeightTraining(TrainingOptions, Method):
    """Training of a twin's weights from the untuned prompt on."""

    weighs_examples: ClassVar[bool] = True

    #: AdamW steps by loss. Those of the contrastive loss were found on a sentence encoder (docs/contrastive.md).
    rates: ClassVar[Mapping[Loss, float]]

    learning_rate: float | None = Field(None, gt=0, description="AdamW step of the weights; by default as `loss` needs")
    head_learning_rate: float = Field(0.01, gt=0, description="AdamW step of a class head")
    loss: Loss = Field(
        Loss.CROSS_ENTROPY, description="`cross-entropy` of the answers, or `contrastive` and then a fitted class head"
    )
    temperature: float = Field(0.1, gt=0, description="of the contrastive loss")
    calibration: Calibrated = CalibrationKind.FITTED

    def fit(self, problem: Problem) -> Outcome:
        """Train from the untuned prompt on; the best on dev wins, the untuned prompt included."""
        untuned, selection = begin(problem, self.calibration)
        twin = Twin(problem.backbone, self._spec(), problem.seed)
        with problem.in_time():
            if self.loss is Loss.CONTRASTIVE:
                trainable = self._trainable(problem, without_head(untuned), twin)
                train_then_fit_heads(self, problem, trainable, selection, self.temperature)
            else:
                train(self, problem, self._trainable(problem, untuned, twin), selection)
        return selection.outcome(untuned)

    @property
    def reads_label_words(self) -> bool:
        """Whether no class head is fitted in the end."""
        return self.loss is not Loss.CONTRASTIVE

    @property
    def rate(self) -> float:
        """AdamW step of the weights."""
        return self.learning_rate or self.rates[self.loss]

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        if self.loss is Loss.CONTRASTIVE:
            unread = ["head_learning_rate", "patience"]
            require_read(self, unread, "loss=contrastive trains to the last epoch and fits the class head then")
        else:
            require_read(self, ["temperature"], "it is of loss=contrastive")
        return self

    @abstractmethod
    def _spec(self) -> LoraSpec | FullSpec:
        """Return which weights are trained."""

    def _trainable(self, problem: Problem, untuned: Candidate, twin: Twin) -> TrainedWeights:
        """Return what is trained."""
        return TrainedWeights(twin, untuned, self.rate, self.head_learning_rate)


class LoraTuning(WeightTraining):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), through PEFT."""

    name: ClassVar[str] = "lora"

    rates: ClassVar[Mapping[Loss, float]] = {Loss.CROSS_ENTROPY: 5e-4, Loss.CONTRASTIVE: 3e-3}

    learning_rate: float | None = Field(
        None, gt=0, description="AdamW step of the adapters; by default 5e-4, or 3e-3 with loss=contrastive"
    )
    rank: int = Field(8, ge=1, description="of the adapters")
    alpha: float = Field(16.0, gt=0, description="adapters count alpha / rank times")
    targets: tuple[str, ...] | None = Field(
        None, description="endings of linear layers' names; by default PEFT's choice for the architecture"
    )

    def _spec(self) -> LoraSpec:
        return LoraSpec(rank=self.rank, alpha=self.alpha, targets=self.targets)


class LoraWithPrompt(LoraTuning):
    """LoRA and the prompt's own embeddings, trained together."""

    name: ClassVar[str] = "lora-prompt"

    prompt_learning_rate: float = Field(0.02, gt=0, description="AdamW step of the prompt, in the embeddings' RMS")
    prompt_length: int | None = Field(None, ge=1, description="tuned vectors; by default the template's own words")

    def _trainable(self, problem: Problem, untuned: Candidate, twin: Twin) -> TrainedWeights:
        backbone = problem.backbone
        first = filled_start(problem, untuned, self.prompt_length, self.calibration)
        step = self.prompt_learning_rate * embedding_scale(backbone.embedding_matrix())
        vectors = (first.prompt.vectors(backbone.embed), step)
        return TrainedWeights(twin, first, self.rate, self.head_learning_rate, vectors)


class FullFineTuning(WeightTraining):
    """All weights, with the prompt in words as it is."""

    name: ClassVar[str] = "full"

    rates: ClassVar[Mapping[Loss, float]] = {Loss.CROSS_ENTROPY: 1e-5, Loss.CONTRASTIVE: 1e-4}

    learning_rate: float | None = Field(
        None, gt=0, description="AdamW step of the weights; by default 1e-5, or 1e-4 with loss=contrastive"
    )

    def _spec(self) -> FullSpec:
        return FullSpec()


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
        if artifact.task != first.task:
            raise ArtifactError(f"artifact {number} has another template or other classes; mix artifacts of one task")
        if artifact.weights.spec.targets != first.manifest.weights.targets:  # type: ignore[union-attr]
            raise ArtifactError(f"artifact {number} adapts other layers; mix artifacts of the same targets")
        if len({own.prompt.head.scale for own in (artifact, first) if own.prompt.head}) > 1:
            raise ArtifactError(f"artifact {number} has a class head on other features; mix artifacts of the same loss")
        if not _same_words(artifact.prompt, first.prompt):
            raise ArtifactError(f"artifact {number} stands on another prompt; mix artifacts that share their words")


def _same_words(one: Prompt, other: Prompt) -> bool:
    return one.kind == other.kind == "hard" and one.tokens == other.tokens


def _mixed_heads(prompts: Sequence[Prompt], share: Tensor) -> Prompt:
    heads = [prompt.head for prompt in prompts if prompt.head is not None]
    if not heads:
        return prompts[0]
    parts = list(zip(share.float().tolist(), heads, strict=True))
    weight, bias = sum(s * h.weight for s, h in parts), sum(s * h.bias for s, h in parts)
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return prompts[0].with_head(replace(heads[0], weight=weight, bias=bias))


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
