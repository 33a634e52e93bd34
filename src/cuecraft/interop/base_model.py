"""Whether the base model that an adapter names is the backbone that it is imported for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuecraft import assets
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.load import checkpoint_hash
from cuecraft.errors import ArtifactError, AssetError, BackboneError, CuecraftWarning
from cuecraft.interop.folder import CONFIG, Beside

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]+)")
_MOVING = (None, "", "main")  # revisions that name no fixed state of a repository


def check_base(
    folder: Path, config: Mapping[str, Any], beside: Beside | None, backbone: AnyBackbone, any_base: bool
) -> str | None:
    """Return what to warn of in the model card, or None where the adapter was trained on the backbone.

    Args:
        folder: of the adapter.
        config: of `adapter_config.json`.
        beside: what `cuecraft.json` holds; None without one.
        backbone: what the adapter is imported for.
        any_base: take an adapter of another base model, with a warning.

    Raises:
        ArtifactError: it names another base model, and that was not allowed.

    Warns:
        CuecraftWarning: it names none, or another one, which was allowed.
    """
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str | None) or not isinstance(revision, str | None):
        raise ArtifactError(f"{folder / CONFIG}: the name of its base model is no text; restore it")
    if beside is not None and beside.manifest.backbone.sha256 == backbone.fingerprint():
        return None
    if not base or not base.strip():
        note = f"the adapter names no base model, and is taken for {backbone.name}"
    elif beside is not None and base == beside.manifest.backbone.name:
        note = f"the adapter was trained on {base} of other weights than {backbone.name}"
    elif not _is_same(base, backbone):
        note = f"the adapter was trained on {base}, and not on {backbone.name}"
    elif not _has_revision(base, revision, backbone):
        note = f"the adapter was trained on revision {revision} of {base}, and not on the one that is loaded"
    else:
        return None
    if base and base.strip() and not any_base:
        raise ArtifactError(
            f"{folder}: {note}; give the model that it was trained on, or allow it where both are the same weights "
            "(--any-base, any_base=True)"
        )
    note += "; where it was trained on other weights, its answers mean nothing"
    warnings.warn(f"{folder}: {note}", CuecraftWarning, stacklevel=3)
    return note


def _is_same(base: str, backbone: AnyBackbone) -> bool:
    """Return whether a name means the backbone's own checkpoint: by name, by place, or by the hash of the files."""
    own = {backbone.name, str(getattr(backbone.model.config, "name_or_path", "") or "")} - {""}
    if _meanings(base) & set().union(*map(_meanings, own)):
        return True
    return checkpoint_hash(base) == backbone.fingerprint()


def _meanings(name: str) -> set[str]:
    """Return what a model's name may be known by: a Hub name, and the place of a folder."""
    name = name.strip()
    plain = name.rstrip("/\\") or name
    found = {plain.casefold()}
    if assets.is_known(plain):
        try:
            return found | {str(assets.model_place(plain).resolve())}
        except (AssetError, BackboneError):
            return found
    place = Path(plain).expanduser()
    if place.is_dir():
        # A folder of the current directory is what transformers takes such a name for, whatever the Hub has.
        found = {str(place.resolve())}
    cached = _CACHED.search(plain)
    return found | ({f"{cached[1]}/{cached[2]}".casefold()} if cached else set())


def _has_revision(base: str, revision: str | None, backbone: AnyBackbone) -> bool:
    """Return whether the backbone is of the revision that an adapter names; a folder has none."""
    if revision in _MOVING or assets.is_known(base) or Path(base).expanduser().is_dir():
        return True
    assert revision is not None
    loaded = str(getattr(backbone.model.config, "_commit_hash", None) or "")
    return bool(loaded) and loaded.startswith(revision.strip().lower()) and len(revision.strip()) >= 7
