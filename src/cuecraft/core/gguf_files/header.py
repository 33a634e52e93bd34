"""The files of a GGUF model: which belong together, the hash of their content, their header, and joining split ones.

The format is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Reading checks all lengths, so that a
damaged file is found here and not in the middle of a conversion.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.core.errors import BackboneError
from cuecraft.core.remembered import known_sha256

MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)  # as llama.cpp's gguf-split names them
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0
_ALIGNMENT = 32


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


class _DamagedError(ValueError):
    """The bytes are not what the format says."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies.

    Args:
        name: in GGUF.
        shape: in the order of the file, which is the reverse of PyTorch's.
        kind: ggml's number of its type.
        start: of its bytes in the file.
        size: in bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights.

    Args:
        path: of the file.
        values: numbers, texts and truth values by key; of an array, how long it is.
        value_bytes: of the section of keys and values.
        value_count: of keys.
        tensors: of the file.
    """

    path: Path
    values: dict[str, Any]
    value_bytes: bytes
    value_count: int
    tensors: tuple[TensorPlace, ...]

    @property
    def architecture(self) -> str:
        """The model's kind, as llama.cpp names it."""
        return str(self.values.get("general.architecture"))

    def own(self, key: str) -> Any:
        """Return a value of the architecture, such as ``context_length``; None without it."""
        return self.values.get(f"{self.architecture}.{key}")

    def floats(self, name: str) -> np.ndarray | None:
        """Return a float32 tensor, flat; None where the file has none of that name and type."""
        for tensor in self.tensors:
            if tensor.name == name and tensor.kind == _FLOAT32:
                return np.fromfile(self.path, np.dtype("<f4"), tensor.count, offset=tensor.start)
        return None


def read_header(path: Path) -> Header:
    """Return the header of a file; its tensors lie within the file.

    Raises:
        BackboneError: it is damaged, cut short, or of a version or a byte order that is not read.
    """
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(path, _Cursor(data))
    except (_DamagedError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path}: is damaged or cut short ({error}); download it again") from error
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error


class _Cursor:
    """A place in a file that moves on with what is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def skip(self, size: int) -> int:
        """Move on by some bytes; return where they begin."""
        start = self.place
        if size > len(self.data) - start:
            raise _DamagedError(f"it has {len(self.data)} bytes, and its header wants more")
        self.place += size
        return start

    def number(self, kind: str) -> Any:
        return struct.unpack_from(f"<{kind}", self.data, self.skip(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        size = self.number("Q")
        start = self.skip(size)
        return self.data[start : start + size].decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _DamagedError(f"a value is of the type {kind}, which there is not")
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(struct.calcsize(f"<{_SCALARS[kind]}") * count)
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise _DamagedError(f"an array is of the type {kind}, which is not read")
        return count


def _header(path: Path, cursor: _Cursor) -> Header:
    cursor.skip(len(MAGIC))
    version = cursor.number("I")
    if version not in _VERSIONS:
        is_swapped = version & 0xFFFF == 0
        what = "is for big-endian machines" if is_swapped else f"is of version {version} of the format"
        raise BackboneError(f"{path}: {what}, which is not read; download a file of version 3, little-endian")
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    start = cursor.place
    values = {}
    for _ in range(value_count):
        key = cursor.text()
        values[key] = cursor.value()
    value_bytes = cursor.data[start : cursor.place]
    entries = []
    for _ in range(tensor_count):
        name, axes = cursor.text(), cursor.number("I")
        entries.append((name, tuple(cursor.number("Q") for _ in range(axes)), cursor.number("I"), cursor.number("Q")))
    tensors = _places(entries, _aligned(cursor.place, _alignment(values)), len(cursor.data))
    return Header(path, values, value_bytes, value_count, tensors)


def _alignment(values: dict[str, Any]) -> int:
    alignment = values.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _DamagedError(f"its alignment is {alignment!r}")
    return alignment


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _places(entries: Sequence[tuple[str, tuple[int, ...], int, int]], start: int, end: int) -> tuple[TensorPlace, ...]:
    from gguf import GGML_QUANT_SIZES

    places = []
    for name, shape, kind, offset in entries:
        if kind not in GGML_QUANT_SIZES:
            raise _DamagedError(f"{name} is of the type {kind}, which the installed package gguf does not know")
        numbers, size = GGML_QUANT_SIZES[kind]
        place = TensorPlace(name, shape, kind, start + offset, prod(shape) // numbers * size)
        if place.start + place.size > end:
            raise _DamagedError(f"it has {end} bytes, and {name} ends at {place.start + place.size}")
        places.append(place)
    return tuple(places)


def join_parts(headers: Sequence[Header], target: Path) -> None:
    """Write the one file that a split model was before: the values of its first part, and the tensors of all.

    Raises:
        BackboneError: the parts are not of one model.
    """
    first = headers[0]
    tensors = [(header, tensor) for header in headers for tensor in header.tensors]
    wanted = first.values.get("split.tensors.count", len(tensors))
    if len({tensor.name for _, tensor in tensors}) != len(tensors) or len(tensors) != wanted:
        raise BackboneError(
            f"{first.path}: its parts hold {len(tensors)} tensors in place of {wanted} different ones, so they are not "
            "of one model; download all again"
        )
    alignment = _alignment(first.values)
    infos, offset = b"", 0
    for _, tensor in tensors:
        name = tensor.name.encode()
        infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.kind, offset)
        offset = _aligned(offset + tensor.size, alignment)
    with target.open("wb") as out:
        out.write(MAGIC + struct.pack("<IQQ", max(_VERSIONS), len(tensors), first.value_count))
        out.write(first.value_bytes + infos)
        for header, tensor in tensors:
            out.write(bytes(_aligned(out.tell(), alignment) - out.tell()))
            _copy(header.path, tensor, out)


def _copy(path: Path, tensor: TensorPlace, out: Any, step: int = 1 << 24) -> None:
    with path.open("rb") as handle:
        handle.seek(tensor.start)
        for done in range(0, tensor.size, step):
            out.write(handle.read(min(step, tensor.size - done)))
