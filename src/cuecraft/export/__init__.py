"""An artifact, or several, as one graph: the backbone with template, prompt, label words and calibration folded in."""

from cuecraft.export.folder import MOST_TEXTS, GraphRequest, check_graph_target, export_graph, own_texts

__all__ = ["MOST_TEXTS", "GraphRequest", "check_graph_target", "export_graph", "own_texts"]
