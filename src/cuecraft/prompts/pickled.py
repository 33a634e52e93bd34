"""What stands in a pickle for something fitted: the files of its folder, and how its backbone is loaded again.

Nothing here reads a pickle: `pickle`, `joblib` and `multiprocessing` do, for whom a process trusts. The files are
checked as those of any folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from cuecraft.backbone.frozen import FrozenModel
from cuecraft.errors import ArtifactError

Files = Mapping[str, bytes]


def folder_files(save: Callable[[Path], object]) -> dict[str, bytes]:
    """Return the files of a folder that `save` writes, by their paths in it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "folder")
        save(folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@contextmanager
def as_folder(files: Files) -> Iterator[Path]:
    """Give the files back as a folder, which is gone afterwards.

    Raises:
        ArtifactError: a path leads out of the folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            parts = PurePosixPath(name).parts
            if not parts or ".." in parts or PurePosixPath(name).is_absolute():
                raise ArtifactError(f"the state has a file {name!r}, which no folder of ours has; save it again")
            path = Path(scratch, *parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(scratch)


def loading_of(backbone: FrozenModel | None) -> dict[str, Any]:
    """Return the arguments by which `load_backbone` gives a backbone again.

    Args:
        backbone: the backbone; None for a model that was never loaded by a name.

    Raises:
        ArtifactError: it was given in memory, so that it has no name.
    """
    source = None if backbone is None else backbone.source
    if source is None:
        raise ArtifactError(
            "the model was given in memory and has no name, by which a pickle could find it again; write the prompt "
            "with save(folder), or save the model as a folder and give that as model="
        )
    return dict(source)
