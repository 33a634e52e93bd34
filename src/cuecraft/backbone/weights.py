"""Weights that are trained: low-rank adapters (LoRA, through PEFT) or all of them, on a twin of a frozen backbone.

The backbone itself stays as it is. A LoRA twin shares its weights and has modules of its own around them; a twin for
full fine-tuning has a copy.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cuecraft.backbone.load import AnyBackbone
from cuecraft.backbone.query import Context
from cuecraft.core.errors import BackboneError
from cuecraft.core.seeding import torch_generator


class LoraSpec(BaseModel):
    """Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685).

    Args:
        rank: of the products.
        alpha: the products count `alpha / rank` times.
        targets: endings of the names of the linear layers that get one; None for PEFT's choice for the architecture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] | None = None


class FullSpec(BaseModel):
    """All weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["full"] = "full"


WeightsSpec = Annotated[LoraSpec | FullSpec, Field(discriminator="kind")]


class Twin:
    """A backbone over weights that can be trained.

    Args:
        backbone: the frozen backbone.
        spec: which weights.
        seed: of the adapters' first values.

    Raises:
        BackboneError: PEFT is missing, or finds no layer to adapt.
    """

    def __init__(self, backbone: AnyBackbone, spec: LoraSpec | FullSpec, seed: int) -> None:
        self.spec = spec
        model = _lora_model(backbone, spec, seed) if isinstance(spec, LoraSpec) else _copied_model(backbone)
        self.backbone: AnyBackbone = backbone.twin(model, f"{backbone.name} with tuned weights")
        #: The trained tensors by name.
        self.trained: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._holds: object = None
        #: Held while the trained tensors have to keep their values.
        self.lock = threading.RLock()

    def hold(self, weights: TunedWeights) -> None:
        """Give the trained tensors the values of `weights`, unless they have them."""
        with self.lock, torch.no_grad():
            if self._holds is not weights and weights.values is not None:
                for name, tensor in self.trained.items():
                    tensor.copy_(weights.values[name])
            self._holds = weights


class TunedWeights:
    """Values of a twin's trained tensors: what reads the texts in place of the frozen backbone.

    Args:
        twin: the backbone; one twin serves many sets of values, one at a time.
        values: by name; None for whatever the twin's tensors are, as while they are trained.

    Raises:
        BackboneError: values that do not fit the twin.
    """

    def __init__(self, twin: Twin, values: Mapping[str, Tensor] | None = None) -> None:
        self._twin = twin
        self.values = values
        self.backbone = twin.backbone
        self.spec = twin.spec
        self.name: str = twin.spec.kind
        shapes = {name: tuple(tensor.shape) for name, tensor in twin.trained.items()}
        if values is not None and shapes != {name: tuple(tensor.shape) for name, tensor in values.items()}:
            raise BackboneError(
                f"the tuned weights ({twin.spec.kind}) do not fit {twin.backbone.name}: other names or shapes; "
                "they were made for another backbone"
            )

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        return sum(tensor.numel() for tensor in self._twin.trained.values())

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the trained tensors by name."""
        return self._twin.trained if self.values is None else self.values

    def snapshot(self) -> TunedWeights:
        """Return the values as they are now, independent of further training."""
        return TunedWeights(self._twin, {name: tensor.detach().clone() for name, tensor in self.tensors().items()})

    def held(self) -> AnyBackbone:
        """Return the backbone with these values, for what has the twin to itself: a prompt that was loaded or ships.

        It takes no lock, which could not be given back: the backbone has these values until others of the same twin are
        held. Where several values take turns, as in a choice among candidates, use `over`.
        """
        self._twin.hold(self)
        return self.backbone

    @contextmanager
    def over(self, context: Context) -> Iterator[tuple[AnyBackbone, Context]]:
        """Lend the backbone with these values, and the context with nothing kept from other weights.

        No other thread gives the twin other values meanwhile.
        """
        with self._twin.lock:
            yield self.held(), context.unread()


def load_weights(backbone: AnyBackbone, spec: LoraSpec | FullSpec, values: Mapping[str, Tensor]) -> TunedWeights:
    """Put stored weights onto a backbone.

    Raises:
        BackboneError: they do not fit.
    """
    return TunedWeights(Twin(backbone, spec, seed=0), dict(values))


def require_peft() -> None:
    """Raise BackboneError where PEFT is not installed."""
    if find_spec("peft") is None:
        raise BackboneError("LoRA needs PEFT: pip install 'cuecraft[peft]'")


def lora_config(model: Any, spec: LoraSpec) -> Any:
    """Return PEFT's description of adapters for a model."""
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    targets = list(spec.targets or known or ()) or "all-linear"
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a float is taken too
        target_modules=targets,
        # GPT-2's layers keep their weights the other way round; PEFT would warn and set it by itself.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )


def _copied_model(backbone: AnyBackbone) -> Any:
    """Return a copy of the model whose weights all have gradients, in float32: steps are lost in half precision."""
    if any(not weight.is_floating_point() for weight in backbone.model.parameters()):
        raise BackboneError(f"{backbone.name} has weights of 4 or 8 bits, which cannot be trained; use lora")
    return copy.deepcopy(backbone.model).float().requires_grad_()


def shared_copy(model: Any) -> Any:
    """Return a model of new modules around the very same weight tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _lora_model(backbone: AnyBackbone, spec: LoraSpec, seed: int) -> Any:
    """Return a model with the backbone's own weights and fresh adapters around some of its linear layers."""
    require_peft()
    from peft import inject_adapter_in_model

    model = shared_copy(backbone.model)
    config = lora_config(model, spec)
    try:
        with torch.random.fork_rng():  # PEFT draws from the global generator what is drawn again below
            inject_adapter_in_model(config, model)
    except ValueError as error:
        raise BackboneError(
            f"{backbone.name}: no LoRA can be put on it ({' '.join(str(error).split())[:200]})"
        ) from error
    generator = torch_generator(seed, "lora")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()  # as PEFT's own models have them, whatever the weights are
        if "lora_A" in name:  # as PEFT draws it, but from the run's own generator
            bound = parameter.shape[-1] ** -0.5
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return model.eval()
