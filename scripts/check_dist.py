"""Check a wheel and an sdist: their files, and metadata as a package index would read it.

    python scripts/check_dist.py dist

Exits with 1 and a line for each fault; else prints what was built.
"""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 2 * 2**20  # bytes of one file: models and results do not belong into a package


def sources() -> set[str]:
    """Return the files of the package, by their paths in a wheel."""
    found = (path for path in (ROOT / "src" / "cuecraft").rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "src").as_posix() for path in found if "__pycache__" not in path.parts}


def differences(found: set[str], expected: set[str], what: str) -> Iterator[str]:
    """Yield a line for each file that is missing or too much."""
    yield from (f"{what}: {name} is missing" for name in sorted(expected - found))
    yield from (f"{what}: {name} does not belong there" for name in sorted(found - expected))


def metadata_faults(text: str, what: str) -> Iterator[str]:
    """Yield a line for each fault of METADATA or PKG-INFO, against pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        found = Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        yield from (f"{what}: {error}" for error in group.exceptions)
        return
    readme = (ROOT / project["readme"]).read_text(encoding="utf-8")
    pairs = {
        "name": (found.name, project["name"]),
        "version": (str(found.version), project["version"]),
        "python": (str(found.requires_python), project["requires-python"]),
        "licence": (found.license_expression, project["license"]),
        "licence files": (found.license_files, project["license-files"]),
        "extras": (sorted(found.provides_extra or []), sorted(project["optional-dependencies"])),
        "description": ((found.description or "").strip(), readme.strip()),
        "its kind": ((found.description_content_type or "").split(";")[0], "text/markdown"),
    }
    yield from (
        f"{what}: {name} is {own!r:.80}, not {meant!r:.80}" for name, (own, meant) in pairs.items() if own != meant
    )


def wheel_faults(path: Path) -> Iterator[str]:
    """Yield a line for each fault of a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        yield from differences(names - info, sources(), path.name)
        yield from (f"{path.name}: {own.filename} is large" for own in archive.infolist() if own.file_size > LARGEST)
        by_name = {name.split("/", 1)[1]: archive.read(name).decode() for name in info}
    yield from metadata_faults(by_name["METADATA"], path.name)
    if "cuecraft = cuecraft.cli:main" not in by_name.get("entry_points.txt", ""):
        yield f"{path.name}: the command cuecraft is missing"
    if "licenses/LICENSE" not in by_name:
        yield f"{path.name}: LICENSE is missing"


def sdist_faults(path: Path) -> Iterator[str]:
    """Yield a line for each fault of an sdist."""
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        names = {member.name.split("/", 1)[1] for member in members}
        yield from (f"{path.name}: {own.name} is large" for own in members if own.size > LARGEST)
        handle = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert handle is not None
        yield from metadata_faults(handle.read().decode(), path.name)
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    expected = {"pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"} | {f"src/{name}" for name in sources()}
    yield from differences(names - made, expected, path.name)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    faults = (
        [] if len(wheels) == len(sdists) == 1 else [f"{folder}: holds {len(wheels)} wheels and {len(sdists)} sdists"]
    )
    faults += [fault for path in wheels for fault in wheel_faults(path)]
    faults += [fault for path in sdists for fault in sdist_faults(path)]
    for fault in faults:
        print(fault)
    for path in (*wheels, *sdists):
        print(f"{path}: {path.stat().st_size / 1024:,.0f} KiB")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
