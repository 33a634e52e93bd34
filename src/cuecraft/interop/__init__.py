"""Prompts to and from other libraries."""

from cuecraft.interop.exporting import export_peft
from cuecraft.interop.importing import import_peft

__all__ = ["export_peft", "import_peft"]
