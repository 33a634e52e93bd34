"""What a result was made on: machine, threads, package versions, and the commit of the folder that it was made in."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = ("cuecraft", "torch", "transformers", "scikit-learn", "scipy", "peft")
_OTHERS = ("numpy", "tokenizers", "safetensors", "pydantic")


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that a result depends on; None for an extra that is not there."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    is_there = find_spec(name.replace("scikit-learn", "sklearn")) is not None
    return metadata.version(name) if is_there else None


def describe(device: torch.device) -> dict[str, Any]:
    """Return platform, processor, device, threads and versions, JSON-ready.

    Args:
        device: that the backbone is on.
    """
    import torch

    is_cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "cpu": f"{os.cpu_count()} cores, {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "threads": torch.get_num_threads(),
        "versions": {name: version for name, version in versions().items() if version}
        | {name: metadata.version(name) for name in _OTHERS}
        | {"python": platform.python_version()},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of the repository that a folder is in, with a plus sign where files were changed since.

    None where there is no repository, or no git.
    """

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
