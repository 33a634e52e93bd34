"""An artifact, or several, for other programs: one graph with everything folded in, or the folder of a PEFT adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.export.folder import MOST_TEXTS, GraphRequest, check_graph_target, export_graph, own_texts
    from cuecraft.export.peft_export import export_peft
    from cuecraft.export.peft_import import import_peft

__all__ = [
    "MOST_TEXTS",
    "GraphRequest",
    "check_graph_target",
    "export_graph",
    "export_peft",
    "import_peft",
    "own_texts",
]

# Loaded on first use: an exported folder answers without PyTorch.
_HOMES = {
    "folder": (
        "MOST_TEXTS",
        "GraphRequest",
        "check_graph_target",
        "export_graph",
        "own_texts",
    ),
    "peft_export": ("export_peft",),
    "peft_import": ("import_peft",),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
