"""Exported folders, read and run without PyTorch: ONNX Runtime or OpenVINO, `tokenizers` and NumPy."""

from cuecraft.export.runtime.manifest import ExportManifest, is_export, read_export
from cuecraft.export.runtime.model import ExportedClassifier, ExportedModel
from cuecraft.export.runtime.sessions import RuntimeOptions

__all__ = ["ExportManifest", "ExportedClassifier", "ExportedModel", "RuntimeOptions", "is_export", "read_export"]
