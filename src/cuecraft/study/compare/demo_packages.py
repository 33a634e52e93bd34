"""The packages that the demo reads: which are missing, and their installation by a list that is pinned by hash."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec

from cuecraft.core import assets
from cuecraft.core.errors import AssetError

MODEL = "demo:smollm2-135m"
DATA = "demo:movie-sentences"
LIST = "demo-packages.txt"
_READERS = ("gguf", "accelerate")  # transformers reads GGUF files through both
MEGABYTES = 100


def missing_packages() -> list[str]:
    """Return the pinned packages of the demo that are not installed, as `name==version`."""
    return [pinned for pinned in map(assets.package_of, (MODEL, DATA)) if not assets.is_installed(pinned)]


def check_readers() -> None:
    """Raise AssetError where the packages that read the demo's model file are missing, and it was not read before."""
    lacking = [name for name in _READERS if find_spec(name) is None]
    if lacking and not assets.model_place(MODEL).is_dir():
        raise AssetError(f"the demo's model is read through {' and '.join(lacking)}; pip install 'cuecraft[demo]'")


def install_packages() -> None:
    """Install the demo's packages into this environment, as the pinned list has them.

    Raises:
        AssetError: pip could not install them.
    """
    with resources.as_file(resources.files(__package__).joinpath(LIST)) as path:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(path)]
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode  # stdout is for the document
        if code:
            raise AssetError(f"pip ended with exit code {code}; run it yourself: {shlex.join(command)}")
    importlib.invalidate_caches()
    if still := missing_packages():
        raise AssetError(f"pip has installed {', '.join(still)} where this Python does not look; check the environment")
