"""Manifests of folders: JSON with a version, a hash of its own, and hashes of the files next to it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cuecraft.errors import CuecraftError
from cuecraft.storage import digest, file_sha256, parse_json

MANIFEST = "manifest.json"
#: The key that tells each kind by its version, and what a folder of it is.
_VERSIONS = {
    "schema_version": "the artifact of a prompt; give it as such, or export it",
    "export_version": "an exported graph; give the artifact that it was made of",
}
M = TypeVar("M", bound=BaseModel)


def manifest_document(folder: Path) -> dict[str, Any]:
    """Return what a folder's manifest holds, whatever it is; nothing where there is none that is an object."""
    try:
        raw = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


@dataclass(frozen=True)
class ManifestKind(Generic[M]):
    """A kind of folder, and how its manifest is checked.

    Args:
        model: of the manifest.
        version: key of its version.
        newest: version that can be read.
        sha256: key of its own hash.
        error: what is raised.
        folder: what such a folder is called.
        versioned: what the version is called.
        remedy: what makes a folder again.
    """

    model: type[M]
    version: str
    newest: int
    sha256: str
    error: type[CuecraftError]
    folder: str
    versioned: str
    remedy: str

    def read(self, folder: Path) -> M:
        """Return the manifest of a folder, itself checked and the files not.

        Raises:
            CuecraftError: of this kind's own class: there is none, it is damaged or was changed, or it is too new.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise self.error(f"{folder}: no {self.folder} here ({MANIFEST} is missing); check the path")
        try:
            raw = parse_json(path.read_text(encoding="utf-8"))
            others = [what for key, what in _VERSIONS.items() if key in raw and self.version not in raw]
            if others:
                raise self.error(f"{folder}: is no {self.folder}, but {others[0]}")
            version = raw[self.version]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.error(f"{path}: is damaged ({error}); restore it or {self.remedy}") from error
        if not isinstance(version, int) or version > self.newest:
            raise self.error(
                f"{path}: has {self.versioned} {version}, but this cuecraft reads up to {self.newest}; upgrade cuecraft"
            )
        try:
            manifest = self.model.model_validate(raw)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise self.error(f"{path}: is damaged (at {where!r}); restore it or {self.remedy}") from error
        # Of the document as it stands in the file: an older version lacks fields that reading fills in.
        if digest(raw, self.sha256) != getattr(manifest, self.sha256):
            raise self.error(f"{path}: was changed after it was written (hash differs); restore it or {self.remedy}")
        return manifest

    def check_files(self, folder: Path, files: Mapping[str, str]) -> None:
        """Raise this kind's error where a file, with its SHA-256 (hex) by name, is missing or another."""
        for name, sha256 in files.items():
            path = folder / Path(name).name
            if not path.is_file():
                raise self.error(f"{folder}: {name} is missing; restore the folder or {self.remedy}")
            if file_sha256(path) != sha256:
                raise self.error(f"{folder}: {name} is damaged (its hash differs); restore the folder or {self.remedy}")
