"""Files and folders that a reader, or a crash, never meets half-written, and folders that one process works in."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

SCRATCH = ".tmp"  # ending of a file under way
LOCK = ".lock"


class FolderInUseError(OSError):
    """Another process works in the folder."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder beside `target`, then move it there in one step.

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
            except OSError:
                old.rename(target)
                raise


def write_file(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step; what stands there stays as it is when that fails.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=SCRATCH, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out of it; remove what one that was killed left half-written.

    Raises:
        FolderInUseError: another process is at work here.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="ascii") as handle:
        try:
            fcntl = import_module("fcntl")
        except ImportError:
            fcntl = None  # not on this system; two processes would do the same work twice, but break nothing
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderInUseError(str(folder)) from error
        for left in folder.rglob(f".*{SCRATCH}"):
            left.unlink()
        yield
