"""Uploaded prompts: a ZIP file of an artifact's files, unpacked where nothing else can be touched."""

from __future__ import annotations

import io
import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from cuecraft.artifact.artifact import CARD, TENSORS, TRACE, WEIGHTS
from cuecraft.core.errors import ServeError
from cuecraft.core.storage import MANIFEST

_NAMES = {MANIFEST, TENSORS, TRACE, CARD, WEIGHTS}


def unpack(content: bytes, folder: Path, most: int) -> None:
    """Write the files of an uploaded artifact into a folder.

    They may lie in one folder of the archive. Only an artifact's own file names are written, and only as files
    directly in `folder`, with no more than the rights that any new file has.

    Args:
        content: of the archive.
        folder: an empty one.
        most: bytes that the files may have in all, unpacked.

    Raises:
        ServeError: no ZIP file, a damaged one, files that no artifact has, links, or too much in them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            left = most
            for path, entry in _entries(archive):
                left -= _extract(archive, entry, folder / path.name, left)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        EOFError,
        RuntimeError,
        OSError,
    ) as error:
        raise ServeError(f"the upload is no ZIP file, or a damaged one ({error}); zip an artifact's folder") from None


def _entries(archive: zipfile.ZipFile) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Return the files, and their paths in the archive."""
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    paths = [PurePosixPath(entry.filename.replace("\\", "/")) for entry in files]
    for path, entry in zip(paths, files, strict=True):
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):  # 0 of systems that have no such bits
            raise ServeError(f"the upload holds {str(path)[:80]!r}, a link or a device; zip the files themselves")
        if path.name not in _NAMES:
            raise ServeError(
                f"the upload holds {str(path)[:80]!r}, which no artifact has; zip an artifact's files alone"
            )
        if path.is_absolute() or ".." in path.parts:
            raise ServeError(f"the upload holds the path {str(path)[:80]!r}; zip an artifact's files alone")
    if len({path.parent for path in paths}) > 1 or len({path.name for path in paths}) < len(paths):
        raise ServeError("the upload holds files of several folders; zip one artifact")
    if MANIFEST not in {path.name for path in paths}:
        raise ServeError(f"the upload holds no {MANIFEST}; zip an artifact's folder")
    return list(zip(paths, files, strict=True))


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Write one file; return its bytes. What an entry says of its own size is not believed."""
    size = 0
    with archive.open(entry) as source, target.open("xb") as handle:
        while piece := source.read(1 << 16):
            size += len(piece)
            if size > most:
                raise ServeError("the upload is larger, unpacked, than limits.upload_bytes of this server")
            handle.write(piece)
    return size
