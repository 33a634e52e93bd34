"""What was computed about large files once: their hashes, and what a check of a model found.

Each result lies in the user's cache, in ``known/``, under the hash of all that it depends on. A result that cannot be
read or written is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cuecraft.core.storage import file_sha256, parse_json, write_text

#: Bytes from which on a file, or a model's weights, count as large; less is computed as fast as it is looked up.
LARGE = 16 * 2**20
_SETTLED = 2.0  # seconds: the coarsest times that file systems keep


def cache_folder() -> Path:
    """Return the user's cache folder for converted models and known results (environment: CUECRAFT_CACHE)."""
    import platformdirs

    return Path(os.environ.get("CUECRAFT_CACHE") or platformdirs.user_cache_dir("cuecraft", appauthor=False))


def recall(key: Mapping[str, Any]) -> Any:
    """Return the result kept under a key; None where there is none.

    Args:
        key: all that the result depends on, JSON-ready.
    """
    try:
        found = parse_json(_place(key).read_text(encoding="utf-8"))
        return found["value"] if found["key"] == dict(key) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(key: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON-ready result under a key, where the cache can be written."""
    place = _place(key)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps({"key": dict(key), "value": value}) + "\n")


def known_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes; a large file is read again only once it has changed.

    A change shows in the file's size, its number on the file system, or the times of its last changes. A file changed
    within the last two seconds is not kept: another change could have the same time.
    """
    state = _state(path)
    if state["size"] < LARGE:
        return file_sha256(path)
    found = recall(state)
    if isinstance(found, str):
        return found
    begun = time.time()
    sha256 = file_sha256(path)
    if _state(path) == state and begun - max(state["modified"], state["changed"]) / 1e9 > _SETTLED:
        keep(state, sha256)
    return sha256


def _state(path: Path) -> dict[str, Any]:
    found = path.stat()
    times = {"modified": found.st_mtime_ns, "changed": found.st_ctime_ns}
    return {"file": str(path.resolve()), "number": [found.st_dev, found.st_ino], "size": found.st_size, **times}


def _place(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "known" / f"{digest[:32]}.json"
