"""What `serve` does before anything is served: artifacts in, a shelf of prompts over one backbone out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cuecraft.backbone import load_backbone
from cuecraft.ensemble import member_folders
from cuecraft.errors import ServeError
from cuecraft.prompts import Artifact, load_artifact
from cuecraft.serve import Shelf


def load_shelf(
    prompts: Mapping[str, Path], kept: Path | None, model: str | None, device: str, dtype: str, local_files_only: bool
) -> Shelf:
    """Load artifacts, and the backbone that all of them were made for.

    Args:
        prompts: id -> folder of an artifact, or of an ensemble.
        kept: folder of prompts that were uploaded to a server before; they win over `prompts`. None for none.
        model: where the backbone is now; None for the name that the first prompt was tuned under.
        device: a torch device, or ``auto``.
        dtype: of the model's weights, or ``auto``.
        local_files_only: never ask the Hub for a model.

    Raises:
        ServeError: there is no prompt, or they were made for several backbones.
        CuecraftError: an artifact or the backbone cannot be used.
    """
    folders = dict(prompts)
    if kept is not None and kept.is_dir():
        folders |= {path.name: path for path in sorted(kept.iterdir()) if path.is_dir() and path.name[0] != "."}
    artifacts = {name: _artifacts(folder) for name, folder in folders.items()}
    if not artifacts:
        raise ServeError("there is no prompt to serve; name an artifact's folder")
    _check_backbones(artifacts)
    made_for = next(iter(artifacts.values()))[0].manifest.backbone
    shelf = Shelf(load_backbone(model or made_for.name, made_for.head, device, local_files_only, dtype))
    for name, own in artifacts.items():
        shelf.put(name, own)
    return shelf


def _artifacts(folder: Path) -> list[Artifact]:
    return [load_artifact(path) for path in member_folders(folder) or [folder]]


def _check_backbones(artifacts: Mapping[str, Sequence[Artifact]]) -> None:
    """Raise ServeError where prompts were made for several backbones."""
    made_for: dict[tuple[str, str], str] = {}
    for name, own in artifacts.items():
        entry = own[0].manifest.backbone
        made_for.setdefault((entry.sha256, entry.head), name)
    if len(made_for) > 1:
        first, other = list(made_for.values())[:2]
        raise ServeError(f"prompts {first!r} and {other!r} were made for different backbones; serve them apart")
