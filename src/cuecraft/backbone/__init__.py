"""The frozen model: reading contexts, and class logits of prompts over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.backbone.base import Backbone, ClassHead, Context, FeatureScale, Prompt, ReadyPrompt, Row, Swap
    from cuecraft.backbone.batching import Budget
    from cuecraft.backbone.causal import CausalBackbone
    from cuecraft.backbone.encoder import EncoderBackbone, MaskedBackbone, Pooling, SequenceBackbone
    from cuecraft.backbone.load import AnyBackbone, load_backbone
    from cuecraft.backbone.rendering import HeadKind, Pieces, Renderer

__all__ = [
    "AnyBackbone",
    "Backbone",
    "Budget",
    "CausalBackbone",
    "ClassHead",
    "Context",
    "EncoderBackbone",
    "FeatureScale",
    "HeadKind",
    "MaskedBackbone",
    "Pieces",
    "Pooling",
    "Prompt",
    "ReadyPrompt",
    "Renderer",
    "Row",
    "SequenceBackbone",
    "Swap",
    "load_backbone",
]

# Loaded on first use: what renders texts and makes batches is used without PyTorch too.
_HOMES = {
    **dict.fromkeys(
        ("Backbone", "ClassHead", "Context", "FeatureScale", "Prompt", "ReadyPrompt", "Row", "Swap"), "base"
    ),
    **dict.fromkeys(("EncoderBackbone", "MaskedBackbone", "Pooling", "SequenceBackbone"), "encoder"),
    **dict.fromkeys(("AnyBackbone", "load_backbone"), "load"),
    **dict.fromkeys(("HeadKind", "Pieces", "Renderer"), "rendering"),
    "Budget": "batching",
    "CausalBackbone": "causal",
}

__getattr__ = loaded_on_use(__name__, _HOMES)
