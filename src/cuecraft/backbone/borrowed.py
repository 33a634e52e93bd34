"""A caller's model in memory, read without a change to it: the same weights in modules of our own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.batching import ONE_PASS_AT_A_TIME
from cuecraft.errors import CuecraftWarning


def borrowed(model: Any) -> Any:
    """Return a copy of a model's modules that shares all weights with it.

    So the copy can be put into evaluation mode and frozen, while the caller's model keeps its modes, also those that it
    gets later: training it goes on, and answers have no dropout. Changes of the weights in place are seen; a model that
    is moved to another device afterwards leaves its old weights here.

    Where modules cannot be copied so (weights of 4 or 8 bits, layers spread over devices), it is the model itself.

    Warns:
        CuecraftWarning: the caller's own model is put into evaluation mode and frozen.
    """
    tensors = [*model.parameters(), *model.buffers()]
    is_plain = all(type(own) in (torch.nn.Parameter, torch.nn.Buffer, Tensor) for own in tensors)
    is_placed = any(hasattr(module, "_hf_hook") for module in model.modules())
    if is_plain and not is_placed and getattr(model, "hf_quantizer", None) is None:
        weights = {id(own): torch.nn.Parameter(own.detach(), requires_grad=False) for own in model.parameters()}
        gradients = {id(own.grad): None for own in model.parameters() if own.grad is not None}
        try:
            with ONE_PASS_AT_A_TIME:  # what a pass in another thread lends to the modules is not theirs
                return copy.deepcopy(model, {**{id(own): own for own in model.buffers()}, **gradients, **weights})
        except Exception:  # modules hold whatever their makers like, such as locks and open files
            pass
    if model.training or any(own.requires_grad for own in model.parameters()):
        warnings.warn(
            f"{type(model).__name__} is put into evaluation mode and its weights are frozen, and it stays so; call "
            "train() and requires_grad_(True) to train it afterwards",
            CuecraftWarning,
            stacklevel=3,
        )
    return model
