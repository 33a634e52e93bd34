"""Where the artifact of a run lies; the only part of recipes that commands which answer need."""

from __future__ import annotations

from pathlib import Path

RECORD = "run.json"


def is_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder."""
    try:
        return (folder / RECORD).is_file()
    except OSError:  # no name of a folder, such as one that is too long
        return False


def artifact_of(folder: Path) -> Path:
    """Return the folder of an artifact: of a run, what it made; else the folder itself."""
    made = folder / "artifact"
    return made if is_run(folder) and made.is_dir() else folder
