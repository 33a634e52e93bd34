"""Supervised contrastive training of prompts and of weights: texts of one class lie together, others apart."""

from cuecraft.tune.contrastive.loss import contrastive_losses
from cuecraft.tune.contrastive.objective import Contrast
from cuecraft.tune.contrastive.training import ContrastiveTraining, PromptOf

__all__ = ["Contrast", "ContrastiveTraining", "PromptOf", "contrastive_losses"]
