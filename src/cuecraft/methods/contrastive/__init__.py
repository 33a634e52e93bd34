"""Supervised contrastive training of prompts and of weights: texts of one class lie together, others apart."""

from cuecraft.methods.contrastive.objective import Contrast, contrastive_losses
from cuecraft.methods.contrastive.training import ContrastiveTraining, PromptOf

__all__ = ["Contrast", "ContrastiveTraining", "PromptOf", "contrastive_losses"]
