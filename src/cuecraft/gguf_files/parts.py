"""Which files make a GGUF model, and the hash of their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from cuecraft.errors import BackboneError
from cuecraft.remembered import known_sha256

MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)  # as llama.cpp's gguf-split names them


def is_gguf(name: str) -> bool:
    """Return whether a model's name means a GGUF file: by its ending, or by how the file begins."""
    path = Path(name)
    try:
        return not path.is_dir() and (path.suffix.lower() == ".gguf" or (path.is_file() and _begins(path, MAGIC)))
    except (OSError, ValueError):  # no name that a file can have, or one that cannot be read
        return False


def model_files(path: Path) -> list[Path]:
    """Return the files of a model in their order: one, or all parts of a split one, of which any may be given.

    Raises:
        BackboneError: a file is missing, cannot be read, or is no GGUF file.
    """
    files = _siblings(path)
    for file in files:
        if not file.is_file():
            if len(files) > 1 and path.is_file():
                raise BackboneError(
                    f"{path}: is one of {len(files)} parts, and {file.name} is missing; put all parts into one folder"
                )
            raise BackboneError(f"{file}: there is no such file; check the path")
        _check_begin(file)
    return files


def content_hash(files: Sequence[Path]) -> str:
    """Return the SHA-256 (hex) of a file; of several, that of their hashes in order."""
    hashes = [known_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _siblings(path: Path) -> list[Path]:
    found = _PART.fullmatch(path.name)
    if found is None or not 1 <= int(found[2]) <= int(found[3]):
        return [path]
    stem, count, ending = found[1], int(found[3]), found[4]
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}{ending}") for number in range(1, count + 1)]


def _check_begin(path: Path) -> None:
    try:
        if _begins(path, MAGIC):
            return
        is_pointer = _begins(path, _POINTER)
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    if is_pointer:
        raise BackboneError(
            f"{path}: is a pointer of Git LFS, and not the file itself; fetch it (git lfs pull) or download again"
        )
    raise BackboneError(f"{path}: is no GGUF file, as it does not begin with 'GGUF'; download it again")


def _begins(path: Path, sign: bytes) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(sign)) == sign
