"""The folder of a run.

================  ====================================================================================
recipe.yaml       the recipe as it was run: overrides and variables put in, every key with its value
environment.json  machine, threads, versions, flags of determinism, commit, folder, variables
run.json          how far it has come; hashes of data, backbone and results; metrics, time, memory
events.jsonl      every step, with seconds since the start
state/            what unfinished trainings and searches go on from
artifact/         what was found; family/ or comparison/ of the other jobs
================  ====================================================================================
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cuecraft.artifact.manifest import BackboneEntry, DataEntry
from cuecraft.core import environment as determinism
from cuecraft.core.environment import describe, git_commit
from cuecraft.core.errors import RunError, named
from cuecraft.core.storage import LOCK, SCRATCH, FolderInUseError, locked, parse_json, unwritable, write_text
from cuecraft.runs.made import RECORD, is_run
from cuecraft.runs.reading import load_recipe, shown_keys, to_yaml
from cuecraft.runs.spec import Recipe

SCHEMA_VERSION = 1
RECIPE, ENVIRONMENT, EVENTS, STATE = "recipe.yaml", "environment.json", "events.jsonl", "state"
TRACKER_FOLDERS = ("tensorboard", "mlruns")
Status = Literal["running", "stopped", "failed", "finished"]


class RunRecord(BaseModel):
    """What `run.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    status: Status
    method: str = Field(description="the method, or the job where it is another than to tune")
    started: str = Field(description="when the run began (UTC)")
    sessions: int = Field(1, description="processes that worked on it: one, and one more for each time it was resumed")
    seconds: float = Field(0.0, description="of those processes together, as far as they came to write it")
    data: dict[str, DataEntry] = Field(description="row count and hash of each part of the data")
    backbone: BackboneEntry | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict, description="hash of each result")
    peak_bytes: int | None = Field(None, description="memory of the last session at its highest")
    as_expected: bool | None = Field(None, description="whether metrics are within the recipe's tolerance of its own")
    error: str | None = Field(None, description="why it failed")


class Surroundings(BaseModel):
    """What `environment.json` holds: what a run was made on when it began, and later sessions where that differs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(description="that it was started in; paths of the recipe are taken from there")
    commit: str | None = Field(description="of the repository that this folder is in; + where files were changed since")
    variables: dict[str, str | None] = Field(description="of the environment")
    determinism: dict[str, Any] = Field(description="what was set")
    platform: str
    cpu: str
    device: str
    threads: int
    versions: dict[str, str]
    later: list[Surroundings] = Field(
        default_factory=list, description="of sessions that resumed it, where they differ"
    )


class RunFolder:
    """The folder of one run.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_there(self) -> bool:
        """Whether a run was begun here."""
        return is_run(self.path)

    @property
    def is_taken(self) -> bool:
        """Whether something stands here that is no run and cannot become one."""
        return os.path.lexists(self.path) and not self._is_ours()

    def record(self) -> RunRecord:
        """Return how far the run has come.

        Raises:
            RunError: no run is here, or its record is damaged.
        """
        path = self.path / RECORD
        if not path.is_file():
            raise RunError(f"{self.path}: no run here ({RECORD} is missing); check the path")
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            if found["schema_version"] > SCHEMA_VERSION:
                raise RunError(f"{path}: was written by a newer cuecraft; upgrade cuecraft")
            return RunRecord.model_validate(found)
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise RunError(f"{path}: is damaged ({str(error).splitlines()[0]}); restore it or run again") from error

    def finished(self) -> RunRecord:
        """Return the record of a finished run.

        Raises:
            RunError: no run is here, it is not finished, or its record is damaged.
        """
        record = self.record()
        if record.status != "finished":
            raise RunError(
                f"{self.path}: the run is {record.status}, not finished; finish it with {named('resume')} first"
            )
        return record

    def shown(self) -> dict[str, Any]:
        """Return the record JSON-ready, for a list of runs; of a damaged one little but that."""
        try:
            return self.record().model_dump(mode="json")
        except RunError:
            return {"status": "damaged", "method": "", "metrics": {}, "seconds": 0.0, "started": ""}

    def recipe(self) -> Recipe:
        """Return the recipe that was run.

        Raises:
            RecipeError: its file is missing or damaged.
        """
        return load_recipe(self.path / RECIPE)

    def surroundings(self) -> Surroundings:
        """Return what the run was made on.

        Raises:
            RunError: its file is missing or damaged.
        """
        path = self.path / ENVIRONMENT
        try:
            return Surroundings.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{path}: cannot be read ({reason}); restore it or run again") from error

    def write(self, record: RunRecord) -> None:
        """Keep how far the run has come, in one step."""
        self._write(RECORD, record.model_dump_json(indent=1) + "\n")

    def begin(self, recipe: Recipe, surroundings: Surroundings, record: RunRecord) -> None:
        """Keep the recipe, the surroundings, and the record, which makes it a run."""
        self._write(RECIPE, to_yaml(recipe))
        self.write_surroundings(surroundings)
        self.write(record)

    def write_surroundings(self, found: Surroundings) -> None:
        """Keep what the run is made on."""
        self._write(ENVIRONMENT, found.model_dump_json(indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            write_text(self.path / name, text)
        except OSError as error:
            raise RunError(
                f"{self.path / name}: cannot be written ({error.strerror or error}); free space or choose another "
                f"{named('out')}"
            ) from error

    def check_writable(self) -> None:
        """Raise RunError where something else stands here, or nothing can be written; before anything long is done."""
        try:
            if self.is_taken:
                raise RunError(f"{self.path}: exists and is no run; choose another {named('out')} or remove it")
            where = unwritable(self.path)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}; choose another {named('out')}") from error
        if where is not None:
            raise RunError(f"{self.path}: {where} cannot be written to; choose another {named('out')}")

    def _is_ours(self) -> bool:
        """Return whether a run lies here, or can: the folder is empty, or a run was killed before it had a record."""
        if not self.path.is_dir():
            return False
        found = {path.name for path in self.path.iterdir() if not path.name.endswith(SCRATCH)}
        return RECORD in found or not found or (LOCK in found and found <= {LOCK, RECIPE, ENVIRONMENT})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            RunError: another process is at work here, or nothing can be written.
        """
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path))
            except FolderInUseError as error:
                raise RunError(
                    f"{self.path}: another process is at work on this run; wait for it, or stop it"
                ) from error
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written to ({error.strerror or error}); choose another {named('out')}"
                ) from error
            yield

    def forget(self) -> None:
        """Remove the files of a run that came to nothing, and the folder if nothing else is in it."""
        with suppress(OSError):
            for name in TRACKER_FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in (RECORD, RECIPE, ENVIRONMENT, EVENTS, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def check_same(self, recipe: Recipe) -> None:
        """Raise RunError where the run here is of another recipe; names the first key that differs."""
        before, now = shown_keys(self.recipe()), shown_keys(recipe)
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                raise RunError(
                    f"{self.path}: was begun with {key} = {before.get(key)!r}, and the recipe now has "
                    f"{now.get(key)!r}; resume with the same recipe, or choose another {named('out')}"
                )


def surroundings_now(recipe: Recipe, device: torch.device) -> Surroundings:
    """Return what a run is made on, here and now.

    Args:
        recipe: that is run.
        device: that the backbone will be on.
    """
    folder = Path.cwd()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUECRAFT_CACHE", "CUECRAFT_DATA", "HF_HOME")
    return Surroundings(
        folder=str(folder),
        commit=git_commit(folder),
        variables={name: os.environ.get(name) for name in (*names, *recipe.env) if name in (*os.environ, *recipe.env)},
        determinism=dict(determinism.flags()),
        **describe(device),
    )


def find_runs(folder: Path) -> list[RunFolder]:
    """Return the runs right under a folder, by name.

    Raises:
        RunError: there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; run a recipe first, or name another folder")
    return [RunFolder(path) for path in sorted(folder.iterdir()) if RunFolder(path).is_there]
