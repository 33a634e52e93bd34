"""The folder of a comparison: finished cells, the documents made of them, and one process at a time."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cuecraft.compare.schema import Cell
from cuecraft.errors import CompareError, CuecraftWarning
from cuecraft.storage import LOCK, SCRATCH, FolderInUseError, locked, parse_json, unwritable, write_text

DOCUMENT, REPORT = "compare.json", "report.html"
_CELLS = "cells"


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
        where = unwritable(path)
        if where is not None:
            raise CompareError(f"{path}: {where} cannot be written to; choose another --out")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it.

        Raises:
            CompareError: another process is at work here.
        """
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path))
                (self.path / _CELLS).mkdir(exist_ok=True)
            except FolderInUseError as error:
                raise CompareError(
                    f"{self.path}: another cuecraft compare is at work here; wait for it or choose another --out"
                ) from error
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
            raw = parse_json(text)
            # The key first: a cell of another schema is out of date, not damaged.
            if raw["key"] != key:
                return None
            return Cell.model_validate(raw)
        except (ValueError, KeyError, TypeError, ValidationError):
            warnings.warn(f"{path}: is damaged; the cell is run again", CuecraftWarning, stacklevel=2)
            return None

    def write(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.write_text(self._cell(cell.name, cell.seed), cell.model_dump_json() + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the folder's files, in one step.

        Raises:
            CompareError: it cannot be written.
        """
        try:
            write_text(path, text)
        except OSError as error:
            raise CompareError(f"{path}: cannot be written ({error}); free space or choose another --out") from error

    def _cell(self, name: str, seed: int) -> Path:
        return self.path / _CELLS / f"{name}-seed-{seed}.json"


def _check_own(path: Path) -> None:
    own = {DOCUMENT, REPORT, _CELLS, LOCK}
    if path.is_dir():
        found = {child.name for child in path.iterdir() if not child.name.endswith(SCRATCH)}
        if found <= own and (_CELLS in found or not found):
            return
    raise CompareError(f"{path}: exists and is no comparison's folder; choose another --out or remove it")
