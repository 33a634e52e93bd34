"""GGUF files: which files make a model, their hash, and their conversion to a folder that `from_pretrained` reads."""

from cuecraft.core.gguf_files.conversion import convert
from cuecraft.core.gguf_files.header import content_hash, is_gguf, model_files

__all__ = ["content_hash", "convert", "is_gguf", "model_files"]
