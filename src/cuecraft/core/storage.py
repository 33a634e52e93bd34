"""Files and folders that no reader, and no crash, finds half-written; locks of folders; manifests with hashes.

No torch here. A manifest is JSON with a version, a hash of its own, and hashes of the files next to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cuecraft.core.errors import CuecraftError

SCRATCH = ".tmp"  # ending of a file in progress
LOCK = ".lock"
MANIFEST = "manifest.json"
#: The key that tells each kind by its version, and what a folder of it is.
_VERSIONS = {
    "schema_version": "the artifact of a prompt; give it as such, or export it",
    "export_version": "an exported graph; give the artifact that it was made of",
}
M = TypeVar("M", bound=BaseModel)


class FolderInUseError(OSError):
    """Another process works in the folder."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def parse_json(text: str) -> Any:
    """Return what JSON text holds.

    Raises:
        ValueError: it is not valid, or nested deeper than Python's reader takes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def digest(document: Mapping[str, Any], own: str = "artifact_sha256") -> str:
    """Return the SHA-256 (hex) of a whole folder: of its manifest as JSON, which holds the files' hashes.

    Args:
        document: the manifest.
        own: its key of this very hash, which is left out.
    """
    body = {name: value for name, value in document.items() if name != own}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder next to `target`, then move it there in one step.

    An older folder of that name is replaced only once the new one is complete, and nothing is left behind when
    `fill` fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        fill(fresh)
        for path in fresh.rglob("*"):
            if path.is_file():
                _sync(path)
        try:
            fresh.rename(target)
        except OSError:  # something stands there: move it aside first, it goes with the scratch folder
            old = target.rename(Path(scratch, "old"))
            try:
                fresh.rename(target)
            except BaseException:
                old.rename(target)
                raise
        _sync(target.parent)


def write_folder_once(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder unless it is there; of several processes one writes, and the others wait for it.

    What a process that was killed left half-written is removed. A file for the lock stays next to the folder.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}{LOCK}").open("w", encoding="ascii") as handle:
        fcntl = _fcntl()
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for left in target.parent.glob(f".{target.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
        if not target.is_dir():
            write_folder(target, fill)


def remove_folder(target: Path) -> None:
    """Remove a folder in one step, as a reader sees it; one that is not there is gone already."""
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch,
        suppress(FileNotFoundError),
    ):
        target.rename(Path(scratch, "old"))


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step; see `write_file`."""
    write_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a new file next to `path`, then put it there in one step.

    What stands there stays as it is when that fails, or is cut short.

    Raises:
        OSError: it cannot be written.
    """
    scratch = path.parent / f".{path.name}-{uuid.uuid4().hex[:12]}{SCRATCH}"
    try:
        fill(scratch)
        _sync(scratch)
        scratch.replace(path)
        _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path) -> Path | None:
    """Return the nearest of a path and its parents that is there, where nothing can be written to it; else None.

    Raises:
        OSError: the path cannot be one.
    """
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out of it; remove what one that was killed left half-written.

    Raises:
        FolderInUseError: another process is at work here.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="ascii") as handle:
        fcntl = _fcntl()
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderInUseError(str(folder)) from error
        for left in folder.rglob(f".*{SCRATCH}"):
            left.unlink()
        yield


def _fcntl() -> Any:
    """Return what locks files, or None on other systems: two processes would do the same work twice there."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


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
