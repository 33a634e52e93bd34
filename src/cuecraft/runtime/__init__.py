"""Exported folders, read and run without PyTorch: ONNX Runtime or OpenVINO, `tokenizers` and NumPy."""

from cuecraft.runtime.manifest import ExportManifest, is_export, read_export
from cuecraft.runtime.model import ExportedClassifier, ExportedModel
from cuecraft.runtime.sessions import RuntimeOptions

__all__ = ["ExportManifest", "ExportedClassifier", "ExportedModel", "RuntimeOptions", "is_export", "read_export"]
