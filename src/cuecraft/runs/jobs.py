"""What recipes do, and what came of it."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cuecraft.artifact import Artifact, load_artifact
from cuecraft.artifact.manifest import BackboneEntry, DataEntry
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import CompareError, CuecraftError, CuecraftWarning, DataError, StoppedError, named
from cuecraft.core.events import Answered, Document, Event, Started
from cuecraft.core.storage import digest, file_sha256
from cuecraft.data import read_records
from cuecraft.data.readers import AS_USUAL
from cuecraft.methods.prepare import data_entry
from cuecraft.runs.answers import asked_of
from cuecraft.runs.multitask import asked_of_tasks, read_tasks, run_multitask
from cuecraft.runs.spec import CompareRecipe, MultitaskRecipe, Recipe, RunFiles, TuneRecipe
from cuecraft.runs.tune import check_label_free, checked_splits, read_unlabelled, run_tune
from cuecraft.study.compare.comparison import DOCUMENT, run_comparison
from cuecraft.study.compare.config import CompareConfig, contenders
from cuecraft.study.compare.config import read_splits as read_comparison_splits
from cuecraft.study.compare.schema import Comparison


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Args:
        metrics: by name.
        artifacts: hash of each artifact, by its path within the run's folder.
        backbone: the frozen model.
    """

    metrics: Mapping[str, float]
    artifacts: Mapping[str, str]
    backbone: BackboneEntry


class Job(ABC):
    """What one recipe does in one folder.

    Args:
        folder: of the run.
    """

    OUT: ClassVar[str]  # where results go, within the run's folder

    def __init__(self, folder: Path, env: Mapping[str, str | None]) -> None:
        self.out = folder / self.OUT
        self._env = env

    def data(self) -> dict[str, DataEntry]:
        """Read the examples; return row count and hash of each part.

        Raises:
            CuecraftError: something about them, or about the method, cannot be used.
        """
        try:
            with _named_by_key():
                return self._data()
        except DataError as error:
            taken = [f"{name}={os.environ.get(name, default)}" for name, default in self._env.items()]
            hint = f"; the recipe takes {', '.join(taken)} from the environment" if taken else ""
            raise DataError(f"{error}{hint}") from error

    @abstractmethod
    def _data(self) -> dict[str, DataEntry]:
        """Read the examples; return row count and hash of each part."""

    @abstractmethod
    def run(self, keeping: Keeping, started: Started) -> Result:
        """Do it.

        Raises:
            CuecraftError: anything that the user can fix.
            StoppedError, KeyboardInterrupt: it was asked to stop.
        """

    @abstractmethod
    def stored(self) -> dict[str, str]:
        """Return the hash of each result that lies in the folder, as `Result.artifacts` has it.

        Raises:
            CuecraftError: one is missing or damaged.
        """

    @abstractmethod
    def trajectories(self) -> Iterator[tuple[str, Sequence[Document]]]:
        """Yield the steps of each search and training that lies in the folder, with its name."""


class ArtifactJob(Job):
    """A job whose results are artifacts."""

    @abstractmethod
    def _folders(self) -> dict[str, Path]:
        """Return the folder of each artifact by its name."""

    def _made(self, metrics: Mapping[str, float]) -> Result:
        """Return what came of it."""
        manifests = {name: artifact.manifest for name, artifact in self._artifacts()}
        hashes = {name: manifest.artifact_sha256 for name, manifest in manifests.items()}
        return Result(metrics, hashes, next(iter(manifests.values())).backbone)

    def stored(self) -> dict[str, str]:
        """Return the hash of each artifact."""
        return {name: artifact.manifest.artifact_sha256 for name, artifact in self._artifacts()}

    def trajectories(self) -> Iterator[tuple[str, Sequence[Document]]]:
        """Yield the trace of each artifact."""
        for name, artifact in self._artifacts():
            yield name, [dict(event) for event in artifact.trace]

    def _artifacts(self) -> Iterator[tuple[str, Artifact]]:
        return ((name, load_artifact(path)) for name, path in self._folders().items())


class TuneJob(ArtifactJob):
    """`cuecraft tune`, with labels or without, with one seed or several."""

    OUT = "artifact"

    def __init__(self, recipe: TuneRecipe, folder: Path) -> None:
        super().__init__(folder, recipe.env)
        self._recipe = recipe

    def _data(self) -> dict[str, DataEntry]:
        """Read the examples of each seed, and hash the other files that options name."""
        return self._examples() | _option_files(self._recipe.tune.model_dump(mode="json"))

    def _examples(self) -> dict[str, DataEntry]:
        recipe, data = self._recipe, self._recipe.data
        if recipe.is_label_free:
            check_label_free(recipe)
            with _labels_are_not_meant():
                found = {"unlabelled": data_entry(read_unlabelled(data, AS_USUAL))}
            if data.test:
                found["test"] = data_entry(read_records(data.test, data.text_columns, data.label_column or "label"))
            return found
        found, asked = {}, asked_of(recipe, AS_USUAL)
        for seed in recipe.seeds or [recipe.seed]:
            train, dev, test = checked_splits(recipe.model_copy(update={"seed": seed}), asked, AS_USUAL)
            ending = f", seed {seed}" if recipe.seeds else ""
            parts = {"train": train, "dev": dev, "test": test}
            found |= {f"{name}{ending}": data_entry(rows) for name, rows in parts.items() if rows}
        return found

    def run(self, keeping: Keeping, started: Started) -> Result:
        """Tune."""
        files = RunFiles(self.out, None if self._recipe.is_label_free else keeping, stop=keeping.stop)
        with _labels_are_not_meant(), _named_by_key():
            document = run_tune(self._recipe, files, heeding(started, keeping.stop, Answered))
        if self._recipe.seeds is None:
            metrics = {name: value for name, value in document["metrics"].items() if value is not None}
        else:
            spread = document["spread"]
            metrics = {name: values["mean"] for name, values in spread.items()}
            metrics |= {f"{name}_sd": values["sd"] for name, values in spread.items()}
            metrics |= {n: v for n, v in document.items() if n.startswith("ensemble_test_") and v is not None}
        return self._made(metrics)

    def _folders(self) -> dict[str, Path]:
        seeds = self._recipe.seeds
        folders = [self.out] if seeds is None else [self.out / f"seed-{seed}" for seed in seeds]
        return {path.name: path for path in folders}


class MultitaskJob(ArtifactJob):
    """`cuecraft multitask`."""

    OUT = "family"

    def __init__(self, recipe: MultitaskRecipe, folder: Path) -> None:
        super().__init__(folder, recipe.env)
        self._recipe = recipe

    def _data(self) -> dict[str, DataEntry]:
        """Read the examples of each task."""
        read = read_tasks(self._recipe, asked_of_tasks(self._recipe))
        return {f"{name} {part}": data_entry(rows) for part, own in read.items() for name, rows in own.items()}

    def run(self, keeping: Keeping, started: Started) -> Result:
        """Train the tasks together."""
        files = RunFiles(self.out, keeping)
        document = run_multitask(self._recipe, files, heeding(started, keeping.stop, Answered))
        metrics = {f"{name}.{key}": value for name, own in document["tasks"].items() for key, value in own.items()}
        return self._made(metrics)

    def _folders(self) -> dict[str, Path]:
        return {name: self.out / "tasks" / name for name in self._recipe.tasks}


class CompareJob(Job):
    """`cuecraft compare`."""

    OUT = "comparison"

    def __init__(self, recipe: CompareRecipe, folder: Path) -> None:
        super().__init__(folder, recipe.env)
        data, task, model = recipe.data, recipe.task, recipe.model
        self._config = CompareConfig(
            **data.model_dump(),
            **task.model_dump(),
            **model.model_dump(exclude={"name"}),
            model=model.name,
            seeds=recipe.seeds,
            methods=recipe.methods,
            out=str(self.out),
        )

    def _data(self) -> dict[str, DataEntry]:
        """Read the examples of each seed."""
        contenders(self._config)
        splits = read_comparison_splits(self._config)
        found = {"test": data_entry(splits.test)}
        for seed, split in splits.seeds.items():
            found |= {f"train, seed {seed}": data_entry(split.train), f"dev, seed {seed}": data_entry(split.dev)}
        return found

    def run(self, keeping: Keeping, started: Started) -> Result:
        """Compare; finished cells are kept by themselves."""
        document, _ = run_comparison(self._config, heeding(started, keeping.stop))
        metrics: dict[str, float] = {}
        for row in document.rows:
            if row.score is not None and row.macro_f1 is not None:
                metrics |= {f"{row.name}.test_accuracy": row.score.mean, f"{row.name}.macro_f1": row.macro_f1.mean}
            else:
                metrics |= {f"{row.name}.test_{name}": own.mean for name, own in row.measures.items()}
        return Result(metrics, self.stored(), document.backbone)

    def stored(self) -> dict[str, str]:
        """Return the hash of each cell, of what in it does not depend on the clock."""
        cells = self._document().cells
        return {f"{cell.name}, seed {cell.seed}": _cell_hash(cell.model_dump(mode="json")) for cell in cells}

    def trajectories(self) -> Iterator[tuple[str, Sequence[Document]]]:
        """Yield the steps of each cell."""
        for cell in self._document().cells:
            yield f"{cell.name}, seed {cell.seed}", [step.model_dump(mode="json") for step in cell.steps]

    def _document(self) -> Comparison:
        path = self.out / DOCUMENT
        try:
            return Comparison.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CompareError(f"{path}: is missing or damaged ({reason}); restore it or run again") from error


@contextmanager
def _labels_are_not_meant() -> Iterator[None]:
    """Leave out the warning that labels are not used: who writes a recipe without them knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*the labels in column .* are not used", CuecraftWarning)
        yield


def _cell_hash(cell: Mapping[str, Any]) -> str:
    """Return the hash of what of a cell does not depend on the clock."""
    names = ("name", "method", "options", "seed", "dev", "test", "predictions", "tuned_parameters", "prompt", "steps")
    return digest({name: cell[name] for name in names})


def heeding(started: Started, stop: Callable[[], bool], kind: type[Event] = Event) -> Started:
    """Return listeners that raise StoppedError once a step was reported, where `stop` says so.

    Args:
        started: called with each part, and returns the listener of its steps.
        stop: whether to stop.
        kind: of the events that heed it. Those of a training, which keeps its state first, must not.
    """

    def start(part: str) -> Callable[[Event], None]:
        tell = started(part)

        def listen(event: Event) -> None:
            tell(event)
            if isinstance(event, kind) and stop():
                raise StoppedError

        return listen

    return start


@contextmanager
def _named_by_key() -> Iterator[None]:
    """Let errors name the keys of the recipe."""
    try:
        yield
    except CuecraftError as error:
        raise type(error)(error.worded(_key)) from error


def _key(place: str) -> str:
    if place == "unlabeled":
        return "tune.method label-free"
    return place if "." in place or place in ("seed", "seeds", "time_limit") else named(place)


def _option_files(options: Mapping[str, Any], place: str = "tune") -> dict[str, DataEntry]:
    """Return length in bytes and hash of the files that a method's options name."""
    found: dict[str, DataEntry] = {}
    for name, value in options.items():
        key = f"{place}.{name}"
        if isinstance(value, Mapping):
            found |= _option_files(value, key)
        elif name in ("corpus", "pool_file") and value is not None:
            path = Path(value)
            found[key] = DataEntry(rows=path.stat().st_size, sha256=file_sha256(path))
    return found


def job_of(recipe: Recipe, folder: Path) -> Job:
    """Return what a recipe does in the folder of a run."""
    if isinstance(recipe, TuneRecipe):
        return TuneJob(recipe, folder)
    return MultitaskJob(recipe, folder) if isinstance(recipe, MultitaskRecipe) else CompareJob(recipe, folder)
