"""The folder of a comparison: finished cells, the documents made of them, and one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cuecraft.compare.schema import Cell
from cuecraft.errors import CompareError, CuecraftWarning

DOCUMENT, REPORT = "compare.json", "report.html"
_CELLS, _LOCK, _SCRATCH = "cells", ".lock", ".tmp"


def cell_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of all that a cell depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Folder:
    """Where a comparison is kept.

    Args:
        path: need not exist yet.

    Raises:
        CompareError: something else stands there, or nothing can be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            _check_own(path)
        nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise CompareError(f"{path}: {nearest} cannot be written to; choose another --out")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it.

        Raises:
            CompareError: another process is at work here.
        """
        (self.path / _CELLS).mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("w", encoding="ascii") as handle:
            try:
                fcntl = import_module("fcntl")
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # not on this system; two processes would do the same work twice, but break nothing
            except OSError as error:
                raise CompareError(
                    f"{self.path}: another cuecraft compare is at work here; wait for it or choose another --out"
                ) from error
            for left in self.path.rglob(f"*{_SCRATCH}"):  # of a process that was killed while it wrote
                left.unlink()
            yield

    def read(self, name: str, seed: int, key: str) -> Cell | None:
        """Return a finished cell, or None where there is none that depends on the same things.

        Warns:
            CuecraftWarning: there is one, but it cannot be read.
        """
        path = self._cell(name, seed)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            text = ""
        try:
            raw = json.loads(text)
            # The key first: a cell of another schema is out of date, not damaged.
            if raw["key"] != key:
                return None
            return Cell.model_validate(raw)
        except (ValueError, KeyError, TypeError, ValidationError):
            warnings.warn(f"{path}: is damaged; the cell is run again", CuecraftWarning, stacklevel=2)
            return None

    def write(self, cell: Cell) -> None:
        """Keep a finished cell."""
        write_atomically(self._cell(cell.name, cell.seed), cell.model_dump_json() + "\n")

    def _cell(self, name: str, seed: int) -> Path:
        return self.path / _CELLS / f"{name}-seed-{seed}.json"


def _check_own(path: Path) -> None:
    own = {DOCUMENT, REPORT, _CELLS, _LOCK}
    if path.is_dir():
        found = {child.name for child in path.iterdir() if not child.name.endswith(_SCRATCH)}
        if found <= own and (_CELLS in found or not found):
            return
    raise CompareError(f"{path}: exists and is no comparison's folder; choose another --out or remove it")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Raises:
        CompareError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=_SCRATCH, dir=path.parent)
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
    except OSError as error:
        raise CompareError(f"{path}: cannot be written ({error}); make room or choose another --out") from error
