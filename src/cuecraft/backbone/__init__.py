"""The frozen model: reading contexts, and class logits of prompts over them."""

from cuecraft.backbone.base import Backbone, ClassHead, Context, Prompt, ReadyPrompt, Row, Swap
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
