"""The frozen model: reading contexts, and class logits of prompts over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.backbone.base import Backbone
    from cuecraft.backbone.budget import Budget
    from cuecraft.backbone.causal import CausalBackbone
    from cuecraft.backbone.encoder import EncoderBackbone, MaskedBackbone, Pooling, SequenceBackbone
    from cuecraft.backbone.load import AnyBackbone, load_backbone
    from cuecraft.backbone.prompt import ClassHead, FeatureScale, Prompt
    from cuecraft.backbone.query import Context, ReadyPrompt, Row, Swap

__all__ = [
    "AnyBackbone",
    "Backbone",
    "Budget",
    "CausalBackbone",
    "ClassHead",
    "Context",
    "EncoderBackbone",
    "FeatureScale",
    "MaskedBackbone",
    "Pooling",
    "Prompt",
    "ReadyPrompt",
    "Row",
    "SequenceBackbone",
    "Swap",
    "load_backbone",
]

# Loaded on first use: none of them is there without PyTorch.
_HOMES = {
    "base": ("Backbone",),
    "prompt": ("ClassHead", "FeatureScale", "Prompt"),
    "query": ("Context", "ReadyPrompt", "Row", "Swap"),
    "budget": ("Budget",),
    "causal": ("CausalBackbone",),
    "encoder": (
        "EncoderBackbone",
        "MaskedBackbone",
        "Pooling",
        "SequenceBackbone",
    ),
    "load": (
        "AnyBackbone",
        "load_backbone",
    ),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
