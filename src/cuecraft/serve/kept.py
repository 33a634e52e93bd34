"""Prompts that were uploaded, in a folder: there after a restart, and shared by servers that have it in common."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuecraft.errors import CuecraftError
from cuecraft.manifests import MANIFEST
from cuecraft.serve.registry import Prompts, check_id
from cuecraft.storage import file_sha256, remove_folder

if TYPE_CHECKING:
    from cuecraft.prompts import Artifact

LOG = logging.getLogger("cuecraft.serve")


_LOOK = 2.0  # seconds between two looks at the folder


class Kept:
    """A folder with one artifact for each prompt, named by its id.

    Args:
        shelf: follows what is in the folder.
        folder: is made when the first prompt is kept.
    """

    def __init__(self, shelf: Prompts[Any], folder: Path) -> None:
        self._shelf = shelf
        self._folder = folder
        self._seen: dict[str, str] = {}  # id -> hash of the manifest that was looked at last
        self._lock = threading.Lock()
        self.refresh()

    def save(self, name: str, artifact: Artifact) -> None:
        """Serve a prompt from now on, and keep it.

        Raises:
            CuecraftError: it cannot be served or written; then nothing has changed but perhaps what is served here.
        """
        with self._lock:
            self._shelf.put(name, [artifact])
            artifact.save(self._folder / name)
            self._seen[name] = self._found()[name]

    def remove(self, name: str) -> None:
        """Serve a prompt no longer, and keep it no longer.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        with self._lock:
            self._shelf.drop(name)
            if self._folder.is_dir():
                remove_folder(self._folder / name)
            self._seen.pop(name, None)

    def refresh(self) -> None:
        """Follow what others did to the folder. What cannot be read, as while it is copied, is left as it is."""
        with self._lock:
            found = self._found()
            for name in [name for name in self._seen if name not in found]:
                if name in {served.name for served in self._shelf.all()}:
                    self._shelf.drop(name)
                del self._seen[name]
            for name, version in found.items():
                if self._seen.get(name) == version:
                    continue
                self._seen[name] = version  # reported once, if it cannot be served
                try:
                    from cuecraft.prompts import load_artifact  # not before there is one: it needs PyTorch

                    self._shelf.put(name, [load_artifact(self._folder / name)])
                except Exception as error:  # a folder of others may hold anything
                    LOG.warning("cannot be served", extra={"fields": {"prompts": [name], "error": str(error)}})

    def _found(self) -> dict[str, str]:
        """Return the prompts of the folder, and what tells a change: the manifest's hash and all files' sizes."""
        found = {}
        for path in sorted(self._folder.glob(f"*/{MANIFEST}")):
            try:
                check_id(path.parent.name)
                sizes = [(part.name, part.stat().st_size) for part in sorted(path.parent.iterdir())]
                found[path.parent.name] = f"{file_sha256(path)} {sizes}"
            except (CuecraftError, OSError):  # no prompt, or gone meanwhile
                continue
        return found


def follow(kept: Kept) -> None:
    """Follow what others do to a folder, for as long as the process lives."""

    def look() -> None:
        while True:
            time.sleep(_LOOK)
            kept.refresh()

    threading.Thread(target=look, name="cuecraft-kept", daemon=True).start()
